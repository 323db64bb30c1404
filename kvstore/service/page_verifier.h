// Checks fetched slabs against their checksums and copies the good ones into place, on one thread of its own:
// the I/O thread must not spend milliseconds on bytes. Slab by slab, so that the copy reads what the checksum
// has just brought into cache. Nothing unverified ever reaches the target.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "kernels/page/page_header.h"

namespace lowkey::kvstore {

// One fetched page.
struct FetchedPage {
  std::array<uint64_t, kernels::kMaxSlabs> checksums{};
  std::array<std::span<const std::byte>, kernels::kMaxSlabs> fetched;  // empty: no such slab
  std::array<std::span<std::byte>, kernels::kMaxSlabs> target;         // the same sizes
};

struct VerifyJob {
  std::vector<FetchedPage> pages;
  std::shared_ptr<void> keep_alive;                    // of the fetched bytes
  std::shared_ptr<const std::atomic<bool>> cancelled;  // looked at before each page
  std::function<void(size_t good)> done;  // on the verifier's thread: pages of the leading good run
};

class PageVerifier {
 public:
  explicit PageVerifier(size_t queue_capacity = 64);
  ~PageVerifier();  // finishes the jobs it has taken

  // False when the queue is full: the job is dropped, `done` never called. Any thread.
  [[nodiscard]] bool submit(VerifyJob job) { return queue_.try_push(std::move(job)); }

 private:
  void run();

  BoundedQueue<VerifyJob> queue_;
  std::thread thread_;
};

}  // namespace lowkey::kvstore
