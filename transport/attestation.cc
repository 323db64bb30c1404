#include "transport/attestation.h"

#include <fstream>

#include "base/check.h"

namespace lowkey::transport {
namespace {

std::string speed(double bytes_per_second) {
  if (bytes_per_second <= 0) return "not measured";
  if (bytes_per_second < 1e9) return fmt::format("{:.1f} MB/s", bytes_per_second / 1e6);
  return fmt::format("{:.1f} GB/s", bytes_per_second / 1e9);
}

}  // namespace

const char* to_string(Path path) {
  switch (path) {
    case Path::kShm:
      return "shm";
    case Path::kRdma:
      return "rdma";
    case Path::kTcp:
      return "tcp";
    case Path::kLoopback:
      return "loopback";
  }
  LOWKEY_CHECK(false, "path {}", static_cast<int>(path));
}

const char* to_string(GpuMemory memory) {
  switch (memory) {
    case GpuMemory::kNone:
      return "none";
    case GpuMemory::kStaged:
      return "staged";
    case GpuMemory::kReachable:
      return "staged, reachable";
  }
  LOWKEY_CHECK(false, "memory {}", static_cast<int>(memory));
}

GpuMemory gpu_memory(bool on_gpu, bool reached_by_ucx) {
  if (!on_gpu) return GpuMemory::kNone;
  return reached_by_ucx ? GpuMemory::kReachable : GpuMemory::kStaged;
}

Path expected_path(const PeerInfo& a, const PeerInfo& b) {
  if (!a.host.empty() && a.host == b.host) return Path::kShm;
  return a.rdma && b.rdma ? Path::kRdma : Path::kTcp;
}

std::string describe(const Attestation& attestation) {
  const auto rates = [](double put, double get, const std::string& memory) {
    return fmt::format("; put {}, get {} ({})", speed(put), speed(get), memory);
  };
  std::string line =
      fmt::format("{} {}: {}{} ({}), expected {}", to_string(attestation.peer_role), attestation.peer_rank,
                  attestation.presumed ? "presumably " : "", to_string(attestation.found), attestation.device,
                  to_string(attestation.expected));
  line += rates(attestation.put_bytes_per_second, attestation.get_bytes_per_second, "host memory");
  if (attestation.gpu != GpuMemory::kNone)
    line += rates(attestation.gpu_put_bytes_per_second, attestation.gpu_get_bytes_per_second,
                  fmt::format("GPU memory, {}", to_string(attestation.gpu)));
  return line;
}

Status check_required(const Attestation& attestation, std::string_view required) {
  if (required == "any") return {};
  const std::string wanted = required == "expected" ? to_string(attestation.expected) : std::string(required);
  if (attestation.presumed) {
    return Error{
        Code::kUnavailable,
        fmt::format("--require-transport {}: UCX does not tell how {} {} is reached, which must be over {}",
                    required, to_string(attestation.peer_role), attestation.peer_rank, wanted),
        "require-transport"};
  }
  if (wanted == to_string(attestation.found)) return {};
  return Error{Code::kUnavailable,
               fmt::format("--require-transport {}: {} {} is reached over {} ({}), not {}", required,
                           to_string(attestation.peer_role), attestation.peer_rank,
                           to_string(attestation.found), attestation.device, wanted),
               "require-transport"};
}

bool has_active_rdma(const std::filesystem::path& sysfs) {
  std::error_code absent;
  for (const auto& device : std::filesystem::directory_iterator(sysfs, absent)) {
    for (const auto& port : std::filesystem::directory_iterator(device.path() / "ports", absent)) {
      std::string state;  // "4: ACTIVE"
      std::getline(std::ifstream(port.path() / "state"), state);
      if (state.starts_with("4:")) return true;
    }
  }
  return false;
}

}  // namespace lowkey::transport
