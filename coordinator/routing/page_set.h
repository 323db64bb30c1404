// A set of page identities that remembers in which order they came or were last used: open addressing with
// linear probing, so that a prompt's pages are looked up at a cache miss each. 24 bytes per slot, at most
// half of the slots in use.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/hash128.h"

namespace lowkey::coordinator {

class PageSet {
 public:
  bool insert(const Hash128& page);  // false: it is there already, and keeps its place in the order
  bool erase(const Hash128& page);   // false: it was not there
  bool use(const Hash128& page);     // goes behind all others in the order; false: it is not there
  bool contains(const Hash128& page) const { return !slots_.empty() && slots_[find(page)].stamp != 0; }
  bool forget_oldest();  // false: empty
  void clear();
  size_t size() const { return size_; }

 private:
  struct Slot {
    Hash128 page;
    uint64_t stamp = 0;  // order of arrival or last use, from 1; 0: free
  };
  struct Arrival {
    Hash128 page;
    uint64_t stamp;
  };
  // Identities are hashes: their low bits are as good as any.
  size_t home(const Hash128& page) const { return page.lo & (slots_.size() - 1); }
  size_t next(size_t slot) const { return (slot + 1) & (slots_.size() - 1); }
  size_t find(const Hash128& page) const;  // its slot, or the free one where it would go; needs slots
  void grow();
  void stamp(Slot& slot);

  std::vector<Slot> slots_;       // a power of two, or none
  std::deque<Arrival> arrivals_;  // oldest first; stale where the slot has another stamp or is gone
  size_t size_ = 0;
  uint64_t stamp_ = 0;
};

}  // namespace lowkey::coordinator
