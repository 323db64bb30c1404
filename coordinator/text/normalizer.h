// The `normalizer` of tokenizer.json: rewrites text before it is cut into pieces.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

// Immutable and thread-safe.
class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  static Result<Normalizer> parse(const JsonNode& node);

  bool empty() const { return steps_.empty(); }
  // REQUIRES: well-formed UTF-8
  void apply(std::string& text) const;

 private:
  using Step = std::function<void(std::string&)>;
  Status add(const JsonNode& node, int depth);
  Result<Step> make_step(const JsonNode& node, const std::string& type) const;

  std::vector<Step> steps_;
};

// A field that is either {"String": s} or {"Regex": r}, as a regular expression.
class Regex;
Result<Regex> parse_pattern(const JsonNode& node);

// Sequences may nest this deep.
inline constexpr int kMaxSequenceDepth = 8;

}  // namespace lowkey::coordinator
