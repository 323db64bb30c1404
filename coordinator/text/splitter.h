// Cuts pieces at the matches of a pattern, as the `behavior` of tokenizer.json says.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"
#include "coordinator/text/regex.h"

namespace lowkey::coordinator {

class Pieces;

enum class SplitBehavior {
  kRemoved,             // matches vanish
  kIsolated,            // each match is a piece
  kMergedWithPrevious,  // a match ends the piece before it
  kMergedWithNext,      // a match begins the piece after it
  kContiguous,          // neighbouring matches form one piece
};

Result<SplitBehavior> parse_split_behavior(std::string_view name, const JsonNode& node);

// Immutable and thread-safe.
class Splitter {
 public:
  using Predicate = bool (*)(char32_t);

  explicit Splitter(Regex regex, SplitBehavior behavior = SplitBehavior::kIsolated, bool invert = false)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  // Every character for which the predicate holds is a match of its own.
  Splitter(Predicate predicate, SplitBehavior behavior) : predicate_(predicate), behavior_(behavior) {}

  void apply(Pieces& pieces) const;

 private:
  struct Span {
    size_t begin, end;
    bool match;
  };
  void find(std::string_view text, std::optional<Regex::Finder>& finder, std::vector<Span>& spans) const;
  void merge(std::vector<Span>& spans) const;

  std::optional<Regex> regex_;
  Predicate predicate_ = nullptr;
  SplitBehavior behavior_;
  bool invert_ = false;
};

}  // namespace lowkey::coordinator
