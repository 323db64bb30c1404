// The memory of the device tier: one range, cut into superblocks, cut into slabs of one size each.
//
// A superblock serves one slab size at a time and returns to the arena when its last slab is freed, so memory
// that one size gives back can serve any other. Slab ids are stateless: id = superblock *
// slabs_per_superblock + slot. Every rank of a replica makes the same arena from the same numbers and finds a
// slab from its id alone; only the leader allocates.
//
// Thread rule: allocation belongs to the step thread; address() may be called from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops/buffer.h"

namespace lowkey::kvstore {

using SlabId = uint32_t;
inline constexpr SlabId kNoSlab = UINT32_MAX;  // no such slab, or not meant

class SuperblockArena {
 public:
  // Maps `superblocks * superblock_bytes` with huge pages where the kernel gives them, and touches every
  // page: a first touch during a step would cost 8x the copy it serves. Error: kResourceExhausted.
  static Result<SuperblockArena> map(uint32_t superblocks, uint64_t superblock_bytes);

  // The same over memory that is there, of a device perhaps: nobody here looks into it. REQUIRES: it is
  // `superblocks * superblock_bytes` long.
  static SuperblockArena over(std::unique_ptr<kernels::Buffer> memory, uint32_t superblocks,
                              uint64_t superblock_bytes);

  // 2 MiB (a huge page), or a multiple, where no more than 1/16 is unused behind the last slab of any size;
  // else in 4 KiB steps: the mapping has huge pages whatever it is cut into. At least 64 of them (16 for
  // every size, where there are more than four), if the largest slab allows. `slab_sizes` are distinct.
  static uint64_t choose_superblock_bytes(std::span<const uint64_t> slab_sizes, uint64_t budget);

  SuperblockArena(SuperblockArena&& other) noexcept;
  SuperblockArena& operator=(SuperblockArena&& other) noexcept;
  ~SuperblockArena();

  std::optional<uint32_t> acquire();  // a superblock index; empty when all are in use
  void release(uint32_t superblock);  // REQUIRES: acquired

  std::byte* address(uint32_t superblock) const { return base_ + superblock * superblock_bytes_; }
  uint64_t superblock_bytes() const { return superblock_bytes_; }
  uint32_t num_superblocks() const { return num_superblocks_; }
  uint32_t free_superblocks() const { return static_cast<uint32_t>(free_.size()); }
  uint64_t capacity_bytes() const { return num_superblocks_ * superblock_bytes_; }

 private:
  SuperblockArena() = default;
  void number();

  std::unique_ptr<kernels::Buffer> memory_;  // null: mapped here
  std::byte* base_ = nullptr;
  uint64_t superblock_bytes_ = 0;
  uint32_t num_superblocks_ = 0;
  std::vector<uint32_t> free_;  // a stack: the lowest index is handed out first
};

// Slabs of one size out of an arena, which outlives the pool.
class SlabPool {
 public:
  // REQUIRES: 0 < slab_bytes <= arena.superblock_bytes(), a multiple of 64
  SlabPool(SuperblockArena& arena, uint64_t slab_bytes);
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  std::optional<SlabId> allocate();  // fills started superblocks first; empty when the arena has none left
  void free(SlabId id);              // REQUIRES: allocated

  std::byte* address(SlabId id) const {
    return arena_->address(id / slabs_per_superblock_) + (id % slabs_per_superblock_) * slab_bytes_;
  }

  // Of slabs that lie together, and go back to the arena together.
  uint32_t superblock_of(SlabId id) const { return id / slabs_per_superblock_; }
  uint32_t used_in(uint32_t superblock) const {  // allocated slabs; REQUIRES: held by this pool
    return slabs_per_superblock_ - static_cast<uint32_t>(superblocks_[superblock].free_slots.size());
  }

  uint64_t slab_bytes() const { return slab_bytes_; }
  uint32_t slabs_per_superblock() const { return slabs_per_superblock_; }
  uint64_t max_slabs() const {
    return uint64_t{arena_->num_superblocks()} * slabs_per_superblock_;
  }  // ids are below
  uint64_t used_slabs() const { return used_slabs_; }
  uint32_t held_superblocks() const { return held_superblocks_; }

  uint64_t used_bytes() const { return used_slabs_ * slab_bytes_; }
  // Free slots of held superblocks: usable by this size only.
  uint64_t free_bytes() const {
    return (uint64_t{held_superblocks_} * slabs_per_superblock_ - used_slabs_) * slab_bytes_;
  }
  // Bytes behind the last slab of held superblocks: usable by nobody.
  uint64_t slack_bytes() const {
    return held_superblocks_ * (arena_->superblock_bytes() - slabs_per_superblock_ * slab_bytes_);
  }

 private:
  struct Superblock {
    std::vector<uint32_t> free_slots;  // a stack
    std::vector<bool> used;            // per slot; empty: not held
    uint32_t position = 0;             // in partial_, where it has free slots
  };

  void add_partial(uint32_t superblock);
  void remove_partial(uint32_t superblock);

  SuperblockArena* arena_;
  uint64_t slab_bytes_;
  uint32_t slabs_per_superblock_;
  uint64_t used_slabs_ = 0;
  uint32_t held_superblocks_ = 0;
  std::vector<Superblock> superblocks_;  // by arena index
  std::vector<uint32_t> partial_;        // held superblocks with free slots
};

}  // namespace lowkey::kvstore
