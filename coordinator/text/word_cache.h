// Remembers how words were encoded: natural text repeats its words.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lowkey::coordinator {

// Bounded and thread-safe: sharded, so that concurrent requests seldom wait for each other.
class WordCache {
 public:
  static constexpr size_t kMaxWordBytes = 64;  // longer pieces are rare and would fill the cache
  static constexpr size_t kShards = 16;
  static constexpr size_t kWordsPerShard = 2048;  // a shard that fills up starts over

  // Appends the cached ids; false on a miss.
  bool lookup(std::string_view word, std::vector<int32_t>& ids) const {
    const Shard& shard = shard_of(word);
    std::lock_guard lock(shard.mutex);
    const auto found = shard.words.find(word);
    if (found == shard.words.end()) return false;
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }

  void insert(std::string_view word, std::vector<int32_t> ids) {
    Shard& shard = const_cast<Shard&>(shard_of(word));
    std::lock_guard lock(shard.mutex);
    if (shard.words.size() >= kWordsPerShard) shard.words.clear();
    shard.words.insert_or_assign(std::string(word), std::move(ids));
  }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
  };
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> words;
  };

  const Shard& shard_of(std::string_view word) const { return shards_[Hash{}(word) % kShards]; }

  std::array<Shard, kShards> shards_;
};

}  // namespace lowkey::coordinator
