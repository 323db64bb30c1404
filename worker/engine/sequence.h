// One sequence as the leader sees it: a request's tokens and what of them is in the cache. Step thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "base/deadline.h"
#include "base/hash128.h"
#include "kvstore/page/page_pool.h"
#include "kvstore/page/sequence_archive.h"
#include "worker/engine/sampler.h"

namespace lowkey::worker {

struct Sequence {
  enum class State : uint8_t { kWaiting, kRestoring, kRunning };

  uint64_t id = 0;          // ascending by arrival: the older sequence has the smaller id
  uint64_t request_id = 0;  // the coordinator's
  SamplingParams sampling;
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int prompt_tokens = 0;

  State state = State::kWaiting;
  int computed = 0;                 // tokens whose K and V are in the cache (pages, then tail)
  int computed_before = 0;          // highest `computed` so far: below it a token is computed again
  Hash128 root;                     // identity before the first page
  std::vector<Hash128> identities;  // of its complete pages, as far as needed yet
  std::vector<kvstore::PageRef>
      pages;  // pages[0 .. computed / page_tokens) are complete; more may be reserved
  kvstore::TailRef tail;
  size_t pages_sent = 0;  // leading pages that the ranks' tables hold as they are here

  // Where the recipe has an archive (kvstore/page/archive_spec.h). A slot counts the tokens in the sequence's
  // own pages and tail, a position all tokens before it.
  kvstore::SequenceArchive archive;
  std::vector<int> archive_sent;  // [bank] pages that the ranks' tables hold
  kvstore::ScoreSpace scores;     // while the prompt is computed, where tokens are chosen by score
  bool prompt_archived = false;
  int moved = 0;  // computed tokens that have no slot any more: archived or dropped
  bool known_to_ranks = false;

  TimePoint submitted = Clock::now();
  int admissions = 0;     // the first one decides queue_seconds and the two counts below
  bool reported = false;  // its first event is out
  double queue_seconds = 0;
  int cached_device = 0;  // prompt tokens found on the device at the first admission
  int cached_store = 0;   // prompt tokens restored after it

  int next_slot() const { return computed - moved; }
  int remaining() const { return static_cast<int>(tokens.size()) - computed; }
  int generated() const { return static_cast<int>(tokens.size()) - prompt_tokens; }

  // The last pages go first, so that the pool, which evicts the longest unused, keeps the front of the prefix
  // longest.
  void release_memory() {
    while (!pages.empty()) pages.pop_back();
    tail = {};
    archive = {};
    archive_sent.clear();
    scores = {};
    prompt_archived = false;
    moved = 0;
    pages_sent = 0;
    computed = 0;
  }
  // Its own tokens have moved, `exact` of them to the front of the tail.
  void tokens_archived(int exact) {
    while (!pages.empty()) pages.pop_back();
    pages_sent = 0;
    scores = {};
    prompt_archived = true;
    moved = computed - exact;
  }
};

}  // namespace lowkey::worker
