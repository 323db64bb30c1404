#include "coordinator/text/splitter.h"

#include <algorithm>

#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {

Result<SplitBehavior> parse_split_behavior(std::string_view name, const JsonNode& node) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return node.bad(fmt::format(
      "expected behavior Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, found '{}'",
      name));
}

void Splitter::find(std::string_view text, std::optional<Regex::Finder>& finder,
                    std::vector<Span>& spans) const {
  size_t done = 0;
  const auto add_match = [&](size_t begin, size_t end) {
    if (done < begin) spans.push_back({done, begin, invert_});
    spans.push_back({begin, end, !invert_});
    done = end;
  };
  if (finder) {
    finder->start(text);
    while (const auto match = finder->next()) add_match(match->first, match->second);
  } else {
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Step step = next_utf8(text, pos);
      if (predicate_(step.code)) add_match(pos, pos + step.bytes);
      pos += step.bytes;
    }
  }
  if (done < text.size()) spans.push_back({done, text.size(), invert_});
}

void Splitter::merge(std::vector<Span>& spans) const {
  if (behavior_ == SplitBehavior::kIsolated) return;
  if (behavior_ == SplitBehavior::kRemoved) {
    std::erase_if(spans, [](const Span& span) { return span.match; });
    return;
  }
  const bool backwards = behavior_ == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(spans.begin(), spans.end());
  std::vector<Span> out;
  bool previous = false;
  for (const Span& span : spans) {
    const bool joins =
        behavior_ == SplitBehavior::kContiguous ? span.match == previous : span.match && !previous;
    previous = span.match;
    if (!joins || out.empty()) {
      out.push_back(span);
    } else if (backwards) {
      out.back().begin = span.begin;
    } else {
      out.back().end = span.end;
    }
  }
  if (backwards) std::reverse(out.begin(), out.end());
  spans = std::move(out);
}

void Splitter::apply(Pieces& pieces) const {
  std::vector<Pieces::Piece> out;
  out.reserve(pieces.all().size());
  std::vector<Span> spans;
  std::optional<Regex::Finder> finder;
  if (regex_) finder.emplace(*regex_);
  for (const Pieces::Piece& piece : pieces.all()) {
    spans.clear();
    find(piece.text, finder, spans);
    merge(spans);
    for (const Span& span : spans) {
      if (span.begin == span.end) continue;
      out.push_back(
          {piece.text.substr(span.begin, span.end - span.begin), piece.at_text_start && span.begin == 0});
    }
  }
  pieces.replace(std::move(out));
}

}  // namespace lowkey::coordinator
