#include "worker/engine/restore_commands.h"

#include <algorithm>

#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kvstore::PageRef;

RestoreCommands::RestoreCommands(int num_ranks, kvstore::PagePool& pool, Send send)
    : num_ranks_(num_ranks), pool_(&pool), send_(std::move(send)) {}

void RestoreCommands::send(PageFetch fetch) {
  const int page_tokens = pool_->memory().layout().page_tokens;
  const int num_levels = pool_->memory().layout().num_levels;
  wire::RestoreCommand message;
  message.set_restore_id(next_id_);
  message.set_gaps(fetch.gaps);
  for (const PageFetch::Page& page : fetch.pages) {
    wire::PlacedPage placed =
        place_page(page.page, page.identity, page.index * page_tokens, page.tokens_hash);
    for (int slab = 0; slab < placed.slabs_size(); ++slab) {
      // The sink comes with the first level.
      const bool wanted = slab < num_levels ? slab >= fetch.from && slab < fetch.to : fetch.from == 0;
      if (!wanted) placed.set_slabs(slab, kvstore::kNoSlab);
    }
    *message.add_pages() = std::move(placed);
    busy_.insert(page.page.id());
    if (fetch.from == 0) fetching_.insert(page.identity);
  }
  if (!fetch.waited) ++refining_;
  Command command{.sources = std::string(fetch.pages.size(), '\1'),
                  .answered = std::vector<bool>(num_ranks_),
                  .outstanding = static_cast<size_t>(num_ranks_),
                  .expected_bytes = bytes_of(fetch)};
  command.landed.queued = bytes_in_flight_;
  bytes_in_flight_ += command.expected_bytes;
  command.fetch = std::move(fetch);
  commands_.emplace(next_id_++, std::move(command));
  send_(message);
}

uint64_t RestoreCommands::bytes_of(const PageFetch& fetch) const {
  uint64_t page_bytes = 0;
  for (int level = fetch.from; level < fetch.to; ++level)
    page_bytes += pool_->memory().layout().slab_bytes[level];
  return page_bytes * fetch.pages.size();
}

std::optional<RestoreCommands::Landed> RestoreCommands::on_answer(const RestoreAnswer& answer) {
  const auto found = commands_.find(answer.restore_id);
  if (found == commands_.end()) return std::nullopt;
  Command& command = found->second;
  if (answer.rank < 0 || answer.rank >= num_ranks_ || command.answered[answer.rank]) return std::nullopt;
  command.answered[answer.rank] = true;
  Landed& landed = command.landed;
  for (size_t i = 0; i < command.sources.size(); ++i) {
    const char mine = i < answer.sources.size() ? answer.sources[i] : '\0';
    char& all = command.sources[i];
    all = mine == 0 || all == 0 ? '\0' : std::max(all, mine);
  }
  if (!answer.reason.empty() && landed.reason.empty())
    landed.reason = fmt::format("rank {}: {}", answer.rank, answer.reason);
  landed.lossy |= answer.lossy;
  if (answer.seconds >= landed.seconds) {
    landed.seconds = answer.seconds;
    landed.bytes = answer.bytes;
  }
  if (--command.outstanding > 0) return std::nullopt;

  land(command);
  if (landed.late) --late_;
  if (!command.fetch.waited) --refining_;
  bytes_in_flight_ -= command.expected_bytes;
  Landed all = std::move(landed);
  all.fetch = std::move(command.fetch);
  all.sources = std::move(command.sources);
  commands_.erase(found);
  return all;
}

void RestoreCommands::land(Command& command) {
  const PageFetch& fetch = command.fetch;
  for (size_t i = 0; i < fetch.pages.size(); ++i) {
    PageFetch::Page& page = command.fetch.pages[i];
    busy_.erase(page.page.id());
    if (fetch.from == 0) fetching_.erase(page.identity);
    if (command.sources[i] == 0 || page.page.levels() != fetch.from) {
      if (fetch.from > 0) pool_->trim(page.page);
      continue;
    }
    pool_->set_levels(page.page, fetch.to, command.landed.lossy);
    pool_->trim(page.page);  // more was asked for, in vain
    if (fetch.from == 0) {
      page.page = pool_->publish(page.page, page.identity, page.tokens,
                                 page.index * pool_->memory().layout().page_tokens);
    }
  }
}

void RestoreCommands::give_up(uint64_t sequence_id) {
  for (auto& [id, command] : commands_) {
    if (command.fetch.sequence_id != sequence_id || !command.fetch.waited || command.landed.late) continue;
    command.landed.late = true;
    ++late_;
  }
}

}  // namespace lowkey::worker
