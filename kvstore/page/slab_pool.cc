#include "kvstore/page/slab_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace lowkey::kvstore {
namespace {

constexpr uint64_t kHugePage = 2 * kMiB;
constexpr uint64_t kSmallPage = 4 * kKiB;
// Below this the size classes would fight over whole superblocks: every one may hold one that is almost
// empty.
uint64_t many_superblocks(size_t size_classes) {
  return std::max<uint64_t>(64, 16 * size_classes);
}

uint64_t round_up(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

constexpr double kFairWaste = 1.0 / 16;

double worst_waste(std::span<const uint64_t> slab_sizes, uint64_t superblock) {
  double worst = 0;
  for (const uint64_t size : slab_sizes) worst = std::max(worst, double(superblock % size) / superblock);
  return worst;
}

void touch(std::byte* begin, uint64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  if (madvise(begin, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  for (uint64_t at = 0; at < bytes; at += kSmallPage)
    reinterpret_cast<volatile std::byte*>(begin)[at] = std::byte{0};
}

}  // namespace

uint64_t SuperblockArena::choose_superblock_bytes(std::span<const uint64_t> slab_sizes, uint64_t budget) {
  const uint64_t largest = *std::max_element(slab_sizes.begin(), slab_sizes.end());
  const uint64_t many = many_superblocks(slab_sizes.size());
  uint64_t best = 0;
  double waste = 0;
  for (const uint64_t unit : {kHugePage, kSmallPage}) {
    if (unit == kHugePage && budget < many * std::max(kHugePage, largest)) continue;
    const uint64_t smallest = round_up(largest, unit);
    const uint64_t limit = std::max(smallest, budget / many);
    for (uint64_t candidate = smallest; candidate <= limit; candidate += unit) {
      const double wasted = worst_waste(slab_sizes, candidate);
      if (best == 0 || wasted < waste) {
        best = candidate;
        waste = wasted;
      }
      if (waste <= kFairWaste) return best;
    }
  }
  return best;
}

Result<SuperblockArena> SuperblockArena::map(uint32_t superblocks, uint64_t superblock_bytes) {
  SuperblockArena arena;
  arena.num_superblocks_ = superblocks;
  arena.superblock_bytes_ = superblock_bytes;
  const uint64_t bytes = arena.capacity_bytes();
  if (bytes > 0) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return Error{Code::kResourceExhausted,
                   fmt::format("KV cache: cannot map {}: {}", format_bytes(bytes), std::strerror(errno)),
                   {}};
    }
    arena.base_ = static_cast<std::byte*>(memory);
    madvise(memory, bytes, MADV_HUGEPAGE);  // advice: without it everything works, slower
    touch(arena.base_, bytes);
  }
  arena.number();
  return arena;
}

SuperblockArena SuperblockArena::over(std::unique_ptr<kernels::Buffer> memory, uint32_t superblocks,
                                      uint64_t superblock_bytes) {
  SuperblockArena arena;
  arena.num_superblocks_ = superblocks;
  arena.superblock_bytes_ = superblock_bytes;
  LOWKEY_CHECK(memory && memory->size() >= arena.capacity_bytes(), "{} bytes for {}",
               memory ? memory->size() : 0, arena.capacity_bytes());
  arena.base_ = memory->data();
  arena.memory_ = std::move(memory);
  arena.number();
  return arena;
}

void SuperblockArena::number() {
  free_.resize(num_superblocks_);
  std::iota(free_.rbegin(), free_.rend(), 0u);
}

SuperblockArena::SuperblockArena(SuperblockArena&& other) noexcept {
  *this = std::move(other);
}

SuperblockArena& SuperblockArena::operator=(SuperblockArena&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(base_, other.base_);
  std::swap(superblock_bytes_, other.superblock_bytes_);
  std::swap(num_superblocks_, other.num_superblocks_);
  std::swap(free_, other.free_);
  return *this;
}

SuperblockArena::~SuperblockArena() {
  if (base_ != nullptr && !memory_) munmap(base_, capacity_bytes());
}

std::optional<uint32_t> SuperblockArena::acquire() {
  if (free_.empty()) return std::nullopt;
  const uint32_t superblock = free_.back();
  free_.pop_back();
  return superblock;
}

void SuperblockArena::release(uint32_t superblock) {
  LOWKEY_CHECK(superblock < num_superblocks_ && free_.size() < num_superblocks_, "superblock {}", superblock);
  free_.push_back(superblock);
}

SlabPool::SlabPool(SuperblockArena& arena, uint64_t slab_bytes)
    : arena_(&arena),
      slab_bytes_(slab_bytes),
      slabs_per_superblock_(static_cast<uint32_t>(arena.superblock_bytes() / slab_bytes)),
      superblocks_(arena.num_superblocks()) {
  LOWKEY_CHECK(slab_bytes % 64 == 0 && slabs_per_superblock_ > 0, "slab of {} bytes in superblocks of {}",
               slab_bytes, arena.superblock_bytes());
}

void SlabPool::add_partial(uint32_t superblock) {
  superblocks_[superblock].position = static_cast<uint32_t>(partial_.size());
  partial_.push_back(superblock);
}

void SlabPool::remove_partial(uint32_t superblock) {
  const uint32_t position = superblocks_[superblock].position;
  partial_[position] = partial_.back();
  superblocks_[partial_[position]].position = position;
  partial_.pop_back();
}

std::optional<SlabId> SlabPool::allocate() {
  if (partial_.empty()) {
    const std::optional<uint32_t> fresh = arena_->acquire();
    if (!fresh) return std::nullopt;
    Superblock& block = superblocks_[*fresh];
    block.used.assign(slabs_per_superblock_, false);
    block.free_slots.resize(slabs_per_superblock_);
    std::iota(block.free_slots.rbegin(), block.free_slots.rend(), 0u);
    ++held_superblocks_;
    add_partial(*fresh);
  }
  const uint32_t superblock = partial_.back();
  Superblock& block = superblocks_[superblock];
  const uint32_t slot = block.free_slots.back();
  block.free_slots.pop_back();
  block.used[slot] = true;
  if (block.free_slots.empty()) remove_partial(superblock);
  ++used_slabs_;
  return superblock * slabs_per_superblock_ + slot;
}

void SlabPool::free(SlabId id) {
  const uint32_t superblock = id / slabs_per_superblock_;
  const uint32_t slot = id % slabs_per_superblock_;
  LOWKEY_CHECK(superblock < superblocks_.size() && slot < superblocks_[superblock].used.size() &&
                   superblocks_[superblock].used[slot],
               "slab {} of {} bytes freed but not allocated", id, slab_bytes_);
  Superblock& block = superblocks_[superblock];
  block.used[slot] = false;
  if (block.free_slots.empty()) add_partial(superblock);
  block.free_slots.push_back(slot);
  --used_slabs_;
  if (block.free_slots.size() < slabs_per_superblock_) return;
  remove_partial(superblock);
  block = Superblock{};
  --held_superblocks_;
  arena_->release(superblock);
}

}  // namespace lowkey::kvstore
