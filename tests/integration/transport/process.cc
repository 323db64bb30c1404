#include "tests/integration/transport/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace lowkey {

Process::Process(const std::vector<std::string>& command) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  const UniqueFd child_input(in[0]), child_output(out[1]);
  input_ = UniqueFd(in[1]);
  output_ = UniqueFd(out[0]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const int failed = posix_spawnp(&pid_, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) throw std::runtime_error("cannot start " + command[0]);
}

Process::~Process() {
  if (!alive()) return;
  signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Process::signal(int number) const {
  kill(pid_, number);
}

bool Process::alive() {
  if (status_) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return true;
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return false;
}

std::optional<int> Process::finish(Deadline deadline) {
  input_.reset();
  while (alive() && !deadline.passed()) std::this_thread::yield();
  return status_;
}

bool Process::fill(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.left()).count();
  pollfd waiting{output_.get(), POLLIN, 0};
  if (poll(&waiting, 1, static_cast<int>(std::max<int64_t>(0, left))) <= 0) return false;
  char bytes[4096];
  const ssize_t got = read(output_.get(), bytes, sizeof bytes);
  if (got <= 0) return false;
  buffered_.append(bytes, got);
  return true;
}

std::optional<std::string> Process::line(Deadline deadline) {
  for (;;) {
    const size_t end = buffered_.find('\n');
    if (end != std::string::npos) {
      std::string found = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      return found;
    }
    if (!fill(deadline)) return std::nullopt;
  }
}

std::string Process::rest(Deadline deadline) {
  while (fill(deadline)) {
  }
  return std::exchange(buffered_, {});
}

}  // namespace lowkey
