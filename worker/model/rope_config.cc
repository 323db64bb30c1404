#include "worker/model/rope_config.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <cmath>
#include <numbers>
#include <string_view>

#include "base/check.h"
#include "worker/model/json_fields.h"

namespace lowkey::worker {
namespace {

using Scaling = RopeConfig::Scaling;

constexpr std::array<std::string_view, 6> kNames = {"default", "linear", "dynamic",
                                                    "yarn",    "llama3", "longrope"};

void read_llama3(JsonFields& fields, RopeConfig& rope) {
  rope.factor = fields.number("factor", 1, 1e6);
  rope.low_freq_factor = fields.number("low_freq_factor", 1e-6, 1e6);
  rope.high_freq_factor = fields.number("high_freq_factor", 1e-6, 1e6);
  if (fields.status().ok() && rope.high_freq_factor <= rope.low_freq_factor)
    fields.fail("high_freq_factor", fmt::format("more than low_freq_factor {}", rope.low_freq_factor));
}

void read_yarn(JsonFields& fields, RopeConfig& rope) {
  rope.factor = fields.number("factor", 1, 1e6);
  rope.beta_fast = fields.number("beta_fast", 1e-6, 1e6, 32.0);
  rope.beta_slow = fields.number("beta_slow", 1e-6, 1e6, 1.0);
  rope.truncate = fields.boolean("truncate", true);
  rope.mscale = fields.number("mscale", 0, 1e6, 0.0);
  rope.mscale_all_dim = fields.number("mscale_all_dim", 0, 1e6, 0.0);
}

std::vector<double> read_factors(JsonFields& fields, const char* name, int count) {
  const std::string expected = fmt::format("{} numbers above 0", count);
  const boost::json::value* list = fields.find(name);
  std::vector<double> factors;
  if (list != nullptr && list->is_array() && static_cast<int>(list->get_array().size()) == count) {
    for (const boost::json::value& value : list->get_array()) {
      const double factor = value.is_number() ? value.to_number<double>() : 0;
      if (!std::isfinite(factor) || factor <= 0) break;
      factors.push_back(factor);
    }
  }
  if (static_cast<int>(factors.size()) != count) fields.fail(name, expected);
  return factors;
}

// What of dimension j of n keeps its frequency: 1 up to the dimension that turns `beta_fast` times in the
// original context, 0 from that of `beta_slow` on (Peng et al. 2023, arXiv:2309.00071, section 3.2).
struct YarnRamp {
  YarnRamp(const RopeConfig& rope, int dim) {
    const auto dimension = [&](double turns) {
      return dim * std::log(rope.original_positions / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(rope.theta));
    };
    low = dimension(rope.beta_fast);
    high = dimension(rope.beta_slow);
    if (rope.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1.0);
    if (low == high) high += 0.001;  // as the published code does
  }
  double kept(int j) const { return 1 - std::clamp((j - low) / (high - low), 0.0, 1.0); }

  double low = 0, high = 0;
};

// The frequencies at `turns` per original context: long waves stretched, short ones kept, blended in between
// (the Llama 3.1 release).
double llama3_kept(const RopeConfig& rope, double frequency) {
  const double turns = rope.original_positions * frequency / (2 * std::numbers::pi);
  return std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
                    1.0);
}

// The base of dynamic NTK for a context of `positions`.
double dynamic_theta(const RopeConfig& rope, int dim, double positions) {
  const double stretch =
      rope.factor * std::max(positions, rope.original_positions) / rope.original_positions -
      (rope.factor - 1);
  return rope.theta * std::pow(stretch, dim / (dim - 2.0));
}

// Cosines and sines grow with the context (YaRN, equation 15; LongRoPE, Ding et al. 2024, arXiv:2402.13753).
double attention_factor(const RopeConfig& rope) {
  if (rope.scaling != Scaling::kYarn && rope.scaling != Scaling::kLongRope) return 1;
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.factor <= 1) return 1;
  if (rope.scaling == Scaling::kLongRope)
    return std::sqrt(1 + std::log(rope.factor) / std::log(rope.original_positions));
  const auto scale = [&](double m) { return 0.1 * m * std::log(rope.factor) + 1; };
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) return scale(rope.mscale) / scale(rope.mscale_all_dim);
  return scale(1);
}

}  // namespace

kernels::RopeTable RopeConfig::table(int head_dim, int max_positions) const {
  const int dim = rotated_features(head_dim);
  kernels::RopeTable table{.head_dim = head_dim,
                           .attention_factor = static_cast<float>(worker::attention_factor(*this))};
  const double base = scaling == Scaling::kDynamic ? dynamic_theta(*this, dim, max_positions) : theta;
  const YarnRamp ramp(*this, dim);
  for (int j = 0; j < dim / 2; ++j) {
    double frequency = std::pow(base, -2.0 * j / dim);
    double kept = 1;
    if (scaling == Scaling::kLinear) kept = 0;
    if (scaling == Scaling::kYarn) kept = ramp.kept(j);
    if (scaling == Scaling::kLlama3) kept = llama3_kept(*this, frequency);
    if (kept < 1) frequency = (1 - kept) * frequency / factor + kept * frequency;
    if (scaling == Scaling::kLongRope)
      frequency /= (max_positions > original_positions ? long_factors : short_factors)[j];
    table.inv_freq.push_back(static_cast<float>(frequency));
  }
  return table;
}

std::string RopeConfig::describe() const {
  std::string text = fmt::format("theta {}", theta);
  if (scaling != Scaling::kNone)
    text += fmt::format(", {} scaling, factor {:.4g}", kNames[static_cast<size_t>(scaling)], factor);
  if (rotated != 1) text += fmt::format(", of {:.4g} of every head", rotated);
  return text;
}

void read_rope_scaling(JsonFields& fields, const RopeContext& context, RopeConfig& rope) {
  rope.theta = fields.number("rope_theta", 1, 1e12, rope.theta);
  rope.rotated = fields.number("partial_rotary_factor", 0, 1, rope.rotated);
  const int dim = rope.rotated_features(context.head_dim);
  if (dim < 2 || dim % 2 != 0)
    fields.fail("partial_rotary_factor",
                fmt::format("a part of head_dim {} that is an even number from 2", context.head_dim));
  const char* spelling = fields.find("rope_type") != nullptr ? "rope_type" : "type";
  std::string type = fields.text(spelling, "default");
  if (context.phi3 && (type == "su" || type == "yarn")) type = "longrope";
  const auto found = std::ranges::find(kNames, type);
  if (found == kNames.end())
    return fields.fail(spelling, "one of [default, linear, dynamic, yarn, llama3, longrope]");
  rope.scaling = static_cast<Scaling>(found - kNames.begin());
  if (!fields.status().ok() || rope.scaling == Scaling::kNone) return;

  const double positions =
      context.original_positions > 0 ? context.original_positions : context.max_positions;
  rope.original_positions = positions;
  if (rope.scaling == Scaling::kDynamic) rope.original_positions = context.max_positions;
  if (rope.scaling != Scaling::kDynamic && context.original_positions == 0)
    rope.original_positions = fields.number("original_max_position_embeddings", 1, 1e9, positions);
  rope.attention_factor.reset();
  if (fields.find("attention_factor") != nullptr)
    rope.attention_factor = fields.number("attention_factor", 1e-6, 1e6);
  switch (rope.scaling) {
    case Scaling::kLlama3:
      return read_llama3(fields, rope);
    case Scaling::kYarn:
      return read_yarn(fields, rope);
    case Scaling::kLongRope:
      rope.factor =
          fields.number("factor", 1e-6, 1e6, std::max(1.0, context.max_positions / rope.original_positions));
      rope.short_factors = read_factors(fields, "short_factor", dim / 2);
      rope.long_factors = read_factors(fields, "long_factor", dim / 2);
      return;
    default:
      rope.factor = fields.number("factor", 1, 1e6);
  }
}

}  // namespace lowkey::worker
