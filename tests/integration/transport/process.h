// A child process with pipes, killed when the object goes.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/unique_fd.h"

namespace lowkey {

class Process {
 public:
  explicit Process(const std::vector<std::string>& command);
  ~Process();

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  bool alive();
  // Closes the child's standard input; well-behaved children end then. The exit status, or -signal.
  std::optional<int> finish(Deadline deadline);
  // The next line of its standard output, or nothing at the deadline or end of file.
  std::optional<std::string> line(Deadline deadline);
  std::string rest(Deadline deadline);  // all output until end of file

 private:
  bool fill(Deadline deadline);

  pid_t pid_ = -1;
  UniqueFd input_, output_;
  std::string buffered_;
  std::optional<int> status_;
};

}  // namespace lowkey
