#include "worker/engine/prefix_events.h"

#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

namespace {

constexpr size_t kMaxPerMessage = 1 << 16;  // 1 MiB of identities

}  // namespace

void PrefixEventQueue::changed(const Hash128& identity, bool added) {
  if (reset_) return;
  pending_[identity] = added;
  if (pending_.size() > max_pending_) resync();
}

void PrefixEventQueue::resync() {
  pending_.clear();
  reset_ = true;
}

void PrefixEventQueue::take(const std::function<std::vector<Hash128>()>& all,
                            const std::function<void(const wire::PrefixEvents&)>& send) {
  wire::PrefixEvents events;
  const auto flush = [&] {
    events.set_sequence(++sequence_);
    send(events);
    events.Clear();
  };
  const auto add = [&](const Hash128& identity, bool added) {
    (added ? events.mutable_added() : events.mutable_removed())->append(identity_bytes(identity));
    if (events.added().size() + events.removed().size() >= kMaxPerMessage * sizeof(Hash128)) flush();
  };
  if (std::exchange(reset_, false)) {
    events.set_reset(true);
    for (const Hash128& identity : all()) add(identity, true);
  } else {
    for (const auto& [identity, added] : pending_) add(identity, added);
  }
  pending_.clear();
  if (events.reset() || !events.added().empty() || !events.removed().empty()) flush();
}

}  // namespace lowkey::worker
