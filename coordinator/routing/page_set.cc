#include "coordinator/routing/page_set.h"

#include <algorithm>

namespace lowkey::coordinator {

namespace {
constexpr size_t kFirstSlots = 1024;
}  // namespace

size_t PageSet::find(const Hash128& page) const {
  size_t slot = home(page);
  while (slots_[slot].stamp != 0 && slots_[slot].page != page) slot = next(slot);
  return slot;
}

bool PageSet::insert(const Hash128& page) {
  if (2 * (size_ + 1) > slots_.size()) grow();
  Slot& slot = slots_[find(page)];
  if (slot.stamp != 0) return false;
  slot.page = page;
  ++size_;
  stamp(slot);
  return true;
}

bool PageSet::use(const Hash128& page) {
  if (slots_.empty()) return false;
  Slot& slot = slots_[find(page)];
  if (slot.stamp == 0) return false;
  stamp(slot);
  return true;
}

void PageSet::stamp(Slot& slot) {
  slot.stamp = ++stamp_;
  arrivals_.push_back({slot.page, stamp_});
  if (arrivals_.size() <= 2 * size_ + kFirstSlots) return;
  std::erase_if(arrivals_, [&](const Arrival& arrival) {  // the stale ones
    return slots_[find(arrival.page)].stamp != arrival.stamp;
  });
}

bool PageSet::erase(const Hash128& page) {
  if (slots_.empty()) return false;
  size_t hole = find(page);
  if (slots_[hole].stamp == 0) return false;
  // Closes the gap: whoever could not be found past a free slot moves up.
  for (size_t slot = next(hole); slots_[slot].stamp != 0; slot = next(slot)) {
    const size_t wanted = home(slots_[slot].page);
    const bool stays = hole <= slot ? hole < wanted && wanted <= slot : hole < wanted || wanted <= slot;
    if (stays) continue;
    slots_[hole] = slots_[slot];
    hole = slot;
  }
  slots_[hole].stamp = 0;
  --size_;
  return true;
}

bool PageSet::forget_oldest() {
  while (!arrivals_.empty()) {
    const Arrival oldest = arrivals_.front();
    arrivals_.pop_front();
    const Slot& slot = slots_[find(oldest.page)];
    if (slot.stamp == oldest.stamp) return erase(oldest.page);
  }
  return false;
}

void PageSet::clear() {
  slots_ = {};
  arrivals_ = {};
  size_ = 0;
}

void PageSet::grow() {
  std::vector<Slot> old(std::max(kFirstSlots, 2 * slots_.size()));
  old.swap(slots_);
  for (const Slot& slot : old)
    if (slot.stamp != 0) slots_[find(slot.page)] = slot;
}

}  // namespace lowkey::coordinator
