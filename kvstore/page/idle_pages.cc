#include "kvstore/page/idle_pages.h"

#include <algorithm>
#include <utility>

namespace lowkey::kvstore {

void IdlePages::add(PageId id, bool stored) {
  nodes_[id].since = ++clock_;
  nodes_[id].stored = stored;
  link(id);
  ++count_;
}

void IdlePages::remove(PageId id) {
  unlink(id);
  --count_;
}

void IdlePages::set_stored(PageId id, bool stored) {
  unlink(id);
  nodes_[id].stored = stored;
  link(id);
}

void IdlePages::forget_stored() {
  std::vector<PageId> all;
  for (const List& list : lists_)
    for (PageId id = list.oldest; id != kNone; id = nodes_[id].newer) all.push_back(id);
  for (const PageId id : all) unlink(id);
  std::ranges::sort(all, {}, [&](PageId id) { return nodes_[id].since; });  // each goes to the end
  for (const PageId id : all) {
    nodes_[id].stored = false;
    link(id);
  }
}

std::optional<PageId> IdlePages::first() const {
  const PageId id = lists_[0].oldest != kNone ? lists_[0].oldest : lists_[1].oldest;
  return id == kNone ? std::nullopt : std::optional(id);
}

std::optional<PageId> IdlePages::older_of(PageId a, PageId b) const {
  if (a == kNone && b == kNone) return std::nullopt;
  return b == kNone || (a != kNone && nodes_[a].since < nodes_[b].since) ? a : b;
}

// At its place by age: the end, but for a page of which a store has got a copy, or lost it, meanwhile.
void IdlePages::link(PageId id) {
  Node& node = nodes_[id];
  List& list = list_of(node);
  PageId older = list.newest, newer = kNone;
  while (older != kNone && nodes_[older].since > node.since)
    newer = std::exchange(older, nodes_[older].older);
  node.older = older;
  node.newer = newer;
  (older == kNone ? list.oldest : nodes_[older].newer) = id;
  (newer == kNone ? list.newest : nodes_[newer].older) = id;
  if (list.droppable == kNone || nodes_[list.droppable].since > node.since) list.droppable = id;
}

void IdlePages::unlink(PageId id) {
  Node& node = nodes_[id];
  List& list = list_of(node);
  if (list.droppable == id) list.droppable = node.newer;
  (node.older == kNone ? list.oldest : nodes_[node.older].newer) = node.newer;
  (node.newer == kNone ? list.newest : nodes_[node.newer].older) = node.older;
  node.older = node.newer = kNone;
}

}  // namespace lowkey::kvstore
