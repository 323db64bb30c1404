// A store in a process of its own (tests/support/store_process.cc), which can really be stopped and killed.
// Killed and reaped with the object.
#pragma once

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

#include "base/deadline.h"
#include "base/unique_fd.h"

namespace lowkey::testing {

class StoreChild {
 public:
  // `program`: store_process; `host`: empty when it is to know of no common host.
  StoreChild(std::string program, uint64_t host_bytes, Duration lease, std::string host, Duration patience) {
    int in[2], out[2];
    if (::pipe(in) != 0 || ::pipe(out) != 0) throw std::runtime_error("pipe");
    UniqueFd child_in(in[0]), child_out(out[1]);
    stdin_ = UniqueFd(in[1]);
    stdout_ = UniqueFd(out[0]);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, child_in.get(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, child_out.get(), STDOUT_FILENO);
    for (const int fd : {in[0], in[1], out[0], out[1]}) posix_spawn_file_actions_addclose(&files, fd);
    std::string bytes = std::to_string(host_bytes);
    std::string lease_ms = std::to_string(lease / std::chrono::milliseconds(1));
    char* argv[] = {program.data(), bytes.data(), lease_ms.data(), host.data(), nullptr};
    const int failed = ::posix_spawn(&pid_, program.c_str(), &files, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    if (failed != 0) throw std::runtime_error("cannot start " + program);
    address_ = read_line(Deadline::in(patience));
  }
  ~StoreChild() {
    if (pid_ > 0) kill();
  }
  const std::string& address() const { return address_; }
  void stop() { ::kill(pid_, SIGSTOP); }
  void resume() { ::kill(pid_, SIGCONT); }
  void kill() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  std::string read_line(Deadline deadline) {
    std::string line;
    while (!deadline.passed()) {
      pollfd readable{.fd = stdout_.get(), .events = POLLIN, .revents = 0};
      char byte;
      if (::poll(&readable, 1, 100) <= 0) continue;
      if (::read(stdout_.get(), &byte, 1) != 1) break;
      if (byte == '\n') return line;
      line += byte;
    }
    throw std::runtime_error("the store did not start: " + line);
  }

  UniqueFd stdin_, stdout_;
  pid_t pid_ = -1;
  std::string address_;
};

}  // namespace lowkey::testing
