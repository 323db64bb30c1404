// One sequence as the leader sees it: a request's tokens and what of them is in the cache. Step thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/hash128.h"
#include "kvstore/page/page_pool.h"
#include "kvstore/page/sequence_archive.h"
#include "worker/engine/grammar_masks.h"
#include "worker/engine/page_table.h"
#include "worker/engine/request_report.h"
#include "worker/engine/sampler.h"

namespace lowkey::worker {

struct Sequence {
  enum class State : uint8_t { kWaiting, kRestoring, kRunning };

  uint64_t id = 0;          // ascending by arrival: the older sequence has the smaller id
  uint64_t request_id = 0;  // the coordinator's
  int priority = 0;         // lower ones come first
  SamplingParams sampling;
  std::shared_ptr<GrammarMasks::Answer> grammar;  // null: any text
  TokenCounts counts;                             // of `tokens`, where there are penalties
  // Logits of the next token, which waits for what its grammar allows. Nothing is computed meanwhile.
  struct Parked {
    std::vector<float> logits;
    TimePoint since = Clock::now();
  };
  std::optional<Parked> parked;
  int prompt_scored = 1;        // prompt tokens whose log-probabilities are told; the first one has none
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int prompt_tokens = 0;
  int emitted_before = 0;   // answer tokens that the client had when the request came here
  int min_levels = 1;       // that must be read of every page
  bool exact_only = false;  // nothing that came back through a lossy format either

  State state = State::kWaiting;
  int computed = 0;                 // tokens whose K and V are in the cache (pages, then tail)
  int computed_before = 0;          // highest `computed` so far: below it a token is computed again
  Hash128 root;                     // identity before the first page
  std::vector<Hash128> identities;  // of its complete pages, as far as needed yet
  // pages[0 .. computed / page_tokens) are complete; more may be reserved. Empty references at the front,
  // under a window: pages that no row to come sees.
  std::vector<kvstore::PageRef> pages;
  kvstore::TailRef tail;
  PageTable table;  // what the ranks know of `pages`
  // Position of the first token that was computed while a page was read coarse. Pages completed from there on
  // are not what other sequences would compute: they are never published or spilled.
  int tainted_from = kUntainted;
  static constexpr int kUntainted = std::numeric_limits<int>::max();

  // Where the recipe has an archive (kvstore/page/archive_spec.h). A slot counts the tokens in the sequence's
  // own pages and tail, a position all tokens before it.
  kvstore::SequenceArchive archive;
  std::vector<int> archive_sent;  // [bank] pages that the ranks' tables hold
  kvstore::ScoreSpace scores;     // while the prompt is computed, where tokens are chosen by score
  bool prompt_archived = false;
  int moved = 0;  // computed tokens that have no slot any more: archived or dropped
  bool known_to_ranks = false;

  TimePoint submitted = Clock::now();
  int admissions = 0;       // the first one decides the report's queue time and where the prompt was found
  bool reported = false;    // its first event is out
  bool waited = false;      // in the queue, for somebody who is fetching or computing the same
  bool runs_alone = false;  // and is computed anew: pages lay in its way (Scheduler::start_over())
  // Leading tokens that are findable, or will be once those before it in the queue have computed them: what
  // the work that is queued here does not count while it waits.
  int expected = 0;
  size_t promised = 0;  // pages that the scheduler counts as promised
  struct Recomputing {  // a prefix that the cost model would rather compute than restore
    int until = 0;      // 0: none
    TimePoint begin{};
    double restore_seconds = 0;  // as predicted
  } recomputing;
  RequestReport report;
  std::string sources;  // [page] of what was fetched at its start, as in RestoreAnswer

  // Where every layer has a sliding window: slots that any row sees, its own included; 0: some layer sees
  // all.
  int window = 0;
  int page_tokens = 1;

  int next_slot() const { return computed - moved; }
  // The first page that the row at `slot`, and those after it, see anything of.
  size_t first_seen_page(size_t slot) const {
    const size_t behind = window == 0 || slot < size_t(window) ? 0 : slot - window + 1;
    return behind / page_tokens;
  }
  size_t held_pages() const {
    return std::ranges::count_if(pages, [](const kvstore::PageRef& page) { return bool(page); });
  }
  int remaining() const { return static_cast<int>(tokens.size()) - computed; }
  int generated() const { return static_cast<int>(tokens.size()) - prompt_tokens; }
  // Its whole prompt has to be computed here, for the logits: nothing of it is taken from the cache.
  bool scores_prompt() const { return sampling.prompt_logprobs && prompt_scored < prompt_tokens; }
  // Who is served first, and gives way last: the lower priority number, then the older one.
  bool before(const Sequence& other) const {
    return priority != other.priority ? priority < other.priority : id < other.id;
  }

  // Leading pages after which the next row can be computed: those that it sees can be read as the request
  // demands.
  size_t ready_pages() const {
    size_t ready = 0, complete_from = 0;
    for (size_t i = 0; i < pages.size(); ++i) {
      if (!pages[i]) {
        complete_from = i + 1;
      } else if (pages[i].levels() < min_levels || (exact_only && pages[i].lossy())) {
        break;
      }
      if (complete_from <= first_seen_page((i + 1) * page_tokens)) ready = i + 1;
    }
    return ready;
  }
  // Pages behind the window go back; published ones stay findable.
  void release_behind_window() {
    for (size_t page = first_seen_page(next_slot()); page > 0 && pages[page - 1]; --page) {
      pages[page - 1] = {};
      table.released(page - 1);
    }
  }
  void keep_pages(size_t count) {
    while (pages.size() > count) pages.pop_back();
  }

  // The last pages go first, so that the pool, which evicts the longest unused, keeps the front of the prefix
  // longest.
  void release_memory() {
    keep_pages(0);
    tail = {};
    archive = {};
    archive_sent.clear();
    scores = {};
    prompt_archived = false;
    moved = 0;
    table.clear();
    tainted_from = kUntainted;
    parked.reset();
    computed = 0;
  }
  // Its own tokens have moved, `exact` of them to the front of the tail.
  void tokens_archived(int exact) {
    keep_pages(0);
    table.clear();
    scores = {};
    prompt_archived = true;
    moved = computed - exact;
  }
};

}  // namespace lowkey::worker
