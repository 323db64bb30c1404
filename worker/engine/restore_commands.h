// Commands to the ranks to fetch slabs of pages from the stores, until every rank has answered. Leader only.
//
// A command holds its pages until then, also when nobody waits any more: a late transfer must not land in
// memory that belongs to someone else. A page counts where every rank has it.
//
// Thread rule: the step thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/hash128.h"
#include "kvstore/page/page_pool.h"

namespace lowkey::wire {
class RestoreCommand;
}

namespace lowkey::worker {

// Levels [from, to) of some pages of one sequence.
struct PageFetch {
  uint64_t sequence_id = 0;
  bool waited = false;  // the sequence does not run before; else it goes on meanwhile
  int from = 0;         // 0: nothing of the pages is there yet, and nobody else knows them
  int to = 0;
  bool gaps = false;  // goes on behind a page that cannot be had; else nothing is known of those behind it
  struct Page {
    size_t index;  // in the sequence
    kvstore::PageRef page;
    Hash128 identity;
    std::vector<int32_t> tokens;  // where it is to be published: from level 0 on
    uint64_t tokens_hash = 0;
  };
  std::vector<Page> pages;
};

// One rank's answer to a command.
struct RestoreAnswer {
  int rank = 0;
  uint64_t restore_id = 0;
  std::string sources;  // one byte per page: 0 not in place, 1 from host memory, 2 from disk
  uint64_t bytes = 0;
  double seconds = 0;
  bool lossy = false;
  std::string reason;
};

class RestoreCommands {
 public:
  using Send = std::function<void(const wire::RestoreCommand&)>;  // to every rank, this one included

  // A fetch that every rank has answered. What is in place can be read, and is published; where an equal
  // page was known already, `pages` names that one. Memory of what is not in place has gone back.
  struct Landed {
    PageFetch fetch;
    std::string sources;  // as the ranks have it together
    uint64_t bytes = 0;   // of the slowest rank
    uint64_t queued = 0;  // on their way to a rank when it was sent
    double seconds = 0;
    bool lossy = false;
    bool late = false;   // nobody has waited for it to the end
    std::string reason;  // why a page is not in place; empty when all are
  };

  RestoreCommands(int num_ranks, kvstore::PagePool& pool, Send send);

  void send(PageFetch fetch);
  std::optional<Landed> on_answer(const RestoreAnswer& answer);
  void give_up(uint64_t sequence_id);  // nobody waits for its fetches any more

  bool busy(kvstore::PageId page) const { return busy_.contains(page); }
  bool fetching(const Hash128& identity) const { return fetching_.contains(identity); }
  size_t in_flight() const { return commands_.size(); }
  size_t late() const { return late_; }
  size_t refining() const { return refining_; }                  // that no sequence waits for
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }  // on this rank

 private:
  struct Command {
    PageFetch fetch;
    std::string sources;
    std::vector<bool> answered;  // by rank
    size_t outstanding = 0;
    uint64_t expected_bytes = 0;
    Landed landed;
  };
  void land(Command& command);
  uint64_t bytes_of(const PageFetch& fetch) const;

  int num_ranks_;
  kvstore::PagePool* pool_;
  Send send_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Command> commands_;
  std::unordered_set<kvstore::PageId> busy_;
  std::unordered_set<Hash128> fetching_;  // pages that are not findable yet
  size_t late_ = 0, refining_ = 0;
  uint64_t bytes_in_flight_ = 0;
};

}  // namespace lowkey::worker
