#include "transport/host_identity.h"

#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>

#include <fstream>

namespace lowkey::transport {

std::string host_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat ipc {
  }, shm{};
  if (boot.empty() || stat("/proc/self/ns/ipc", &ipc) != 0 || stat("/dev/shm", &shm) != 0) return {};
  return fmt::format("{}/{}/{}.{}", boot, ipc.st_ino, shm.st_dev, shm.st_ino);
}

}  // namespace lowkey::transport
