// What a pair of processes really uses for one-sided transfers, against what their hosts could use, and how
// fast it was at start. UCX falls back without a word (shared memory to TCP loopback, RDMA to TCP), and the
// only symptom is slowness: so every pair says what it found. Plain data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/result.h"
#include "transport/peer.h"

namespace lowkey::transport {

enum class Path : uint8_t { kShm = 0, kRdma = 1, kTcp = 2, kLoopback = 3 };
const char* to_string(Path path);  // "shm", "rdma", "tcp", "loopback"

// How pages in the memory of this process's GPU take the pair's path. They are staged in page-locked host
// memory wherever they go, because their checksums are made and verified there; `kReachable` says that UCX
// itself could read and write them on this path (it was built for GPUs, and its context found them).
enum class GpuMemory : uint8_t { kNone = 0, kStaged = 1, kReachable = 2 };
const char* to_string(GpuMemory memory);  // "none", "staged", "staged, reachable"
GpuMemory gpu_memory(bool on_gpu, bool reached_by_ucx);

struct Attestation {
  uint64_t connection = 0;  // ControlConnection::id()
  Role peer_role = Role::kStore;
  int peer_rank = 0;  // in the MPI job
  Path found = Path::kTcp;
  bool presumed = false;  // UCX has not said it in words that are understood: `found` is what it should be
  Path expected = Path::kTcp;
  std::string device;  // as UCX names them: "sysv/memory,posix/memory", "tcp/eth0"
  GpuMemory gpu = GpuMemory::kNone;
  // Of local host memory, flush included; 0: not measured.
  double put_bytes_per_second = 0;
  double get_bytes_per_second = 0;
  // Of this process's GPU memory: the copy out of it or into it and the transfer, one behind the other.
  double gpu_put_bytes_per_second = 0;
  double gpu_get_bytes_per_second = 0;

  bool as_expected() const { return found == expected; }
};

// The best that two hosts allow: shared memory on one host, RDMA where both have an active device, else TCP.
Path expected_path(const PeerInfo& a, const PeerInfo& b);

// One line: "store 3: shm (sysv/memory,posix/memory), expected shm; put 8.1 GB/s, get 7.9 GB/s (host
// memory)", and on a GPU "; put 6.9 GB/s, get 6.8 GB/s (GPU memory, staged)".
std::string describe(const Attestation& attestation);

// --require-transport: any | expected | shm | rdma. kUnavailable, naming the pair, what was found and wanted;
// what is only presumed meets no requirement.
Status check_required(const Attestation& attestation, std::string_view required);

// Whether this host has an RDMA port that is up, as the kernel tells it.
bool has_active_rdma(const std::filesystem::path& sysfs = "/sys/class/infiniband");

}  // namespace lowkey::transport
