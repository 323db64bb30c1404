// A step of steady decode allocates nothing: this binary's operator new counts while it is asked to.
#include <atomic>
#include <cstdlib>
#include <new>

#include <gtest/gtest.h>

#include "kernels/cpu/bf16_panels.h"
#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "worker/model/random_model.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void* counted(size_t size) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t size) {
  return counted(size);
}
void* operator new[](size_t size) {
  return counted(size);
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new[](size_t size, const std::nothrow_t& nothrow) noexcept {
  return operator new(size, nothrow);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}

namespace lowkey::testing {
namespace {

constexpr int kSequences = 3;

// Allocations of steps [first, first + count) that add one token to each sequence.
int allocations_of_decodes(const kernels::PageSpec& pages, int first, int count) {
  const TempFolder folder;
  const auto shape = worker::parse_shape("tiny");
  EXPECT_TRUE(shape.ok() && worker::write_random_model(*shape, 1, folder.path() / "m").ok());
  const auto config = worker::ModelConfig::read(folder.path() / "m");
  // One thread: with more, who takes which task decides when a thread's scratch has grown.
  const auto backend = kernels::make_cpu_backend({.dtype = kernels::DType::kBf16, .threads = 1});
  const auto model = worker::Model::load(folder.path() / "m", *config, 0, 1, *backend);
  const auto layout = kernels::PageLayout::make(pages, config->cache_shape(1, kernels::DType::kBf16));
  EXPECT_TRUE(model.ok() && layout.ok());
  const auto host_comms = transport::make_loopback_comms(1);
  const auto comm = transport::make_staged_comm(*host_comms[0], *backend);
  std::vector<SequenceCache> caches;
  for (int s = 0; s < kSequences; ++s) caches.emplace_back(*layout, *backend);
  std::vector<float> logits(kSequences * (*model)->vocab_shard());
  allocations = 0;
  for (int step = 0; step < first + count; ++step) {
    std::vector<int32_t> tokens, rows;
    std::vector<kernels::SequenceSlice> slices;
    for (int s = 0; s < kSequences; ++s) {
      slices.push_back(caches[s].extend(s, 1));
      tokens.push_back((step * 31 + s * 7) % config->vocab_size);
      rows.push_back(s);
    }
    const std::vector<int32_t> positions(kSequences, step);
    const Deadline deadline = Deadline::in(std::chrono::minutes(1));
    counting = step >= first;
    const Status status =
        (*model)->forward({tokens, positions, slices, rows}, *layout, *comm, deadline, logits);
    counting = false;
    EXPECT_TRUE(status.ok());
  }
  return allocations;
}

// Across two ends of pages: encoding them is part of a step.
TEST(StepAllocations, SteadyDecodeHasNone) {
  if (!kernels::has_bf16_panels()) GTEST_SKIP() << "oneDNN's products allocate as they like";
  EXPECT_EQ(allocations_of_decodes({}, 40, 64), 0) << "exact pages";
  EXPECT_EQ(allocations_of_decodes(kernels::PageSpec::embedded("q4", 4, 4), 40, 64), 0) << "4-bit pages";
}

}  // namespace
}  // namespace lowkey::testing
