#include "cli/inspect_recipe.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "base/bytes.h"

namespace lowkey::cli {

using kernels::PageLayout;
using kernels::Plane;
using kernels::Quantizer;
using kernels::ScaleAxis;
using kernels::Side;
using kernels::VectorLayout;
using kvstore::BasisKind;
using kvstore::BitDial;
using kvstore::FeatureDial;
using kvstore::Recipe;
using kvstore::ResolvedCache;

namespace {

constexpr size_t kColumns = 100;

// The layout whose vectors are encoded pages of this bank, and the bank's number in it.
std::pair<const PageLayout*, int> encoded(const ResolvedCache& cache, int bank) {
  if (cache.archive.empty()) return {&cache.pages, bank};
  return {&cache.archive[bank], 0};
}

std::string words(const FeatureDial& dial, const Recipe& recipe) {
  if (dial.basis == BasisKind::kIdentity) return "as they are";
  std::string text = fmt::format("{} basis", to_string(dial.basis));
  if (dial.keep < 1)
    text +=
        fmt::format(", {:.3g} % kept, {}", 100 * dial.keep,
                    dial.per_head ? "chosen per head (budget " + recipe.budget + ")" : "as many everywhere");
  return text;
}

std::string words(const BitDial& dial, const Recipe& recipe, kernels::DType dtype) {
  if (dial.quantizer == Quantizer::kFull) return kernels::to_string(dtype);
  const std::string width = dial.width == kvstore::kWidthAuto
                                ? fmt::format("bits by budget {}", recipe.budget)
                                : fmt::format("{} bits", dial.width);
  if (dial.quantizer == Quantizer::kEmbedded) return width + ", embedded codes, a norm per token";
  return fmt::format("{}, affine codes, a range per {} {}", width, dial.scale_span,
                     dial.axis == ScaleAxis::kChannel ? "tokens of a feature" : "features of a token");
}

// One text for both sides where they agree.
template <class Words>
std::string both(const Recipe& recipe, Words words_of) {
  const std::string key = words_of(recipe.key), value = words_of(recipe.value);
  return key == value ? key : fmt::format("K: {}\n            V: {}", key, value);
}

std::string describe_tokens(const Recipe& recipe) {
  if (!recipe.tokens) return "all";
  const kvstore::TokenDial& dial = *recipe.tokens;
  const char* score = dial.score == kvstore::TokenScore::kColumnSum   ? "column sums (h2o)"
                      : dial.score == kvstore::TokenScore::kWindowSum ? "sums of the last rows (snap)"
                                                                      : "small key norms (l2)";
  return fmt::format("{:.3g} % of the prompt by {}{}, and its newest {:.3g} %", 100 * dial.heavy, score,
                     dial.shape == kvstore::BudgetShape::kPyramid ? ", fewer in later layers" : "",
                     100 * dial.recent);
}

// What a store is given of every page.
std::string describe_spill(const ResolvedCache& cache) {
  const PageLayout& pages = cache.pages;
  const double stored =
      cache.spilled ? cache.spilled->bytes_per_token() : pages.bytes_per_token(cache.spill_levels);
  const std::string form =
      cache.spilled ? fmt::format("as {}, and back when it is restored", cache.recipe.spilled->name)
                    : fmt::format("the first {} of {} levels", cache.spill_levels, pages.num_levels);
  return fmt::format("{}: {:.1f} bytes/token on a rank, {:.2f}x fewer", form, stored,
                     pages.bytes_per_token() / stored);
}

std::string describe_dials(const ResolvedCache& cache, const std::string& profile) {
  const Recipe& recipe = cache.recipe;
  const PageLayout& pages = cache.pages;
  std::string text = fmt::format("\nRecipe {}\n", recipe.name);
  const auto line = [&](const char* name, const std::string& value) {
    text += fmt::format("  {:<10}{}\n", name, value);
  };
  const size_t layers = cache.layers.bank_of_layer.size();
  line("layers", static_cast<size_t>(pages.num_banks) == layers
                     ? "each has its own K and V"
                     : fmt::format("{} read the K and V of {}", layers, pages.num_banks));
  const int join = encoded(cache, 0).first->join;
  line("heads", join == 1 ? "one stored vector each" : fmt::format("{} joined into one stored vector", join));
  line("tokens", describe_tokens(recipe));
  line("features",
       both(recipe, [&](const auto& side) { return words(static_cast<const FeatureDial&>(side), recipe); }));
  line("bits", both(recipe, [&](const auto& side) {
         return words(static_cast<const BitDial&>(side), recipe, pages.dtype);
       }));
  line("hot", cache.archive.empty()
                  ? (recipe.sink_tokens > 0 ? fmt::format("{} sink tokens and ", recipe.sink_tokens) : "") +
                        "the incomplete page"
                  : fmt::format("the prompt until it is complete, then up to {} tokens",
                                std::max(recipe.recent_block, recipe.page_tokens)));
  line("stream", fmt::format("{} level{}, pages of {} tokens", recipe.levels.size(),
                             recipe.levels.size() == 1 ? "" : "s", recipe.page_tokens));
  if (cache.spilled || cache.spill_levels < pages.num_levels) line("spill", describe_spill(cache));
  if (!profile.empty()) line("profile", profile);
  return text;
}

// All encoded pages' bytes per token of all ranks, up to `levels`, headers where pages have them.
double bytes_per_token(std::span<const ResolvedCache> ranks, int levels) {
  double bytes = 0;
  for (const ResolvedCache& cache : ranks) {
    if (cache.archive.empty()) bytes += cache.pages.bytes_per_token(levels);
    for (const PageLayout& bank : cache.archive) bytes += double(bank.slab_bytes[0]) / bank.page_tokens;
  }
  return bytes;
}

std::string level_table(std::span<const ResolvedCache> ranks) {
  const ResolvedCache& cache = ranks[0];
  const double elements = cache.pages.bf16_bytes_for_tokens(1) / 2.0 * ranks.size();
  std::string text = fmt::format("\n  {:<8}{:>14}{:>14}", "levels", "bytes/token", "bits/element");
  for (const uint64_t length : kInspectLengths) text += fmt::format("{:>14}", fmt::format("x at {}", length));
  text += '\n';
  for (int levels = 1; levels <= std::ssize(cache.recipe.levels); ++levels) {
    const double bytes = bytes_per_token(ranks, levels);
    text += fmt::format("  {:<8}{:>14.1f}{:>14.2f}", levels == 1 ? "1" : fmt::format("1 to {}", levels),
                        bytes, bytes * 8 / elements);
    for (const uint64_t length : kInspectLengths) {
      const uint64_t all =
          cache.archive.empty() ? cache.pages.bytes_for_tokens(length, levels) : cache.bytes_for(length, 0);
      text += fmt::format("{:>14.2f}", double(cache.pages.bf16_bytes_for_tokens(length)) / double(all));
    }
    text += '\n';
  }
  return text +
         "  bytes/token: of encoded tokens; x at n: times smaller than bf16 at n tokens, everything "
         "counted\n";
}

// One character per group: its bits, f for full, . for none; levels joined by +.
std::string bits_of(const PageLayout& layout, const VectorLayout& vector) {
  const int groups = (vector.dim + kernels::kGroupFeatures - 1) / kernels::kGroupFeatures;
  const int all = (vector.input_dim + kernels::kGroupFeatures - 1) / kernels::kGroupFeatures;
  std::string text;
  for (int level = 0; level < layout.num_levels; ++level) {
    std::vector<int> bits(all, 0);
    for (int p = 0; p < vector.num_planes; ++p) {
      const Plane& plane = layout.planes[vector.first_plane + p];
      if (plane.level == level) bits[plane.feature / kernels::kGroupFeatures] += plane.bits;
    }
    if (level > 0) text += '+';
    for (int g = 0; g < all; ++g)
      text += g >= groups || bits[g] == 0 ? '.' : bits[g] > 8 ? 'f' : static_cast<char>('0' + bits[g]);
  }
  return text;
}

struct Row {
  std::string layer, heads;
  std::array<std::string, 2> kept, bits;  // [side]
  bool same_bits(const Row& other) const { return kept == other.kept && bits == other.bits; }
};

std::vector<Row> rows_of(std::span<const ResolvedCache> ranks) {
  std::vector<Row> rows;
  const kvstore::LayerMap& layers = ranks[0].layers;
  for (int bank = 0; bank < layers.num_banks(); ++bank) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      const auto [layout, index] = encoded(ranks[rank], bank);
      for (int head = 0; head < layout->num_kv_heads; head += layout->join) {
        const int first = static_cast<int>(rank) * layout->num_kv_heads + head;
        Row row{.layer = std::to_string(layers.producer_of_bank[bank]),
                .heads = layout->join == 1 ? std::to_string(first)
                                           : fmt::format("{}-{}", first, first + layout->join - 1)};
        for (const Side side : {Side::kKey, Side::kValue}) {
          const VectorLayout& vector = layout->vector(index, side, head);
          row.bits[int(side)] = bits_of(*layout, vector);
          row.kept[int(side)] =
              fmt::format("{} of {}", vector.num_planes == 0 ? 0 : vector.dim, vector.input_dim);
        }
        rows.push_back(std::move(row));
      }
    }
  }
  const auto same = [&](const Row& row) { return row.same_bits(rows[0]); };
  if (rows.size() > 1 && std::ranges::all_of(rows, same)) {
    rows.resize(1);
    rows[0].layer = rows[0].heads = "all";
  }
  return rows;
}

std::string head_table(std::span<const ResolvedCache> ranks) {
  const std::vector<Row> rows = rows_of(ranks);
  size_t bits_width = 4;
  for (const Row& row : rows) bits_width = std::max({bits_width, row.bits[0].size(), row.bits[1].size()});
  const bool beside = 2 * (bits_width + 19) + 17 <= kColumns;
  std::string text =
      fmt::format("\n  {:>5}{:>7}   {:<16}{:<{}}", "layer", "head", "K features", "bits", bits_width);
  if (beside) text += fmt::format("   {:<16}bits", "V features");
  text += '\n';
  for (const Row& row : rows) {
    text += fmt::format("  {:>5}{:>7}   {:<16}{:<{}}", row.layer, row.heads, row.kept[0], row.bits[0],
                        bits_width);
    text += beside ? "   " : fmt::format("\n  {:>5}{:>7} V ", "", "");
    text += fmt::format("{:<16}{}\n", row.kept[1], row.bits[1]);
  }
  return text + fmt::format("  bits: of every {} features, most important first; f: full, .: none{}\n",
                            kernels::kGroupFeatures,
                            ranks[0].recipe.levels.size() > 1 ? "; + adds a level" : "");
}

}  // namespace

uint64_t smallest_piece(const ResolvedCache& cache) {
  uint64_t least = UINT64_MAX;
  const int banks = cache.layers.num_banks();
  for (int bank = 0; bank < banks; ++bank) {
    const auto [layout, index] = encoded(cache, bank);
    for (const Side side : {Side::kKey, Side::kValue}) {
      std::array<uint64_t, kernels::kMaxLevels> bytes{};
      for (int head = 0; head < layout->num_kv_heads; head += layout->join) {
        const VectorLayout& vector = layout->vector(index, side, head);
        for (int p = 0; p < vector.num_planes; ++p) {
          const Plane& plane = layout->planes[vector.first_plane + p];
          bytes[plane.level] += plane.bytes;
        }
      }
      for (const uint64_t piece : bytes)
        if (piece > 0) least = std::min(least, piece);
    }
  }
  return least;
}

std::string describe_recipe(std::span<const ResolvedCache> ranks, const std::string& profile) {
  return describe_dials(ranks[0], profile) + level_table(ranks) + head_table(ranks);
}

}  // namespace lowkey::cli
