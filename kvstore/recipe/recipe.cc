#include "kvstore/recipe/recipe.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>
#include <vector>

namespace lowkey::kvstore {
namespace {

using kernels::PageSpec;
using kernels::Quantizer;

// One key of one dial: what this version serves, and why not more. A key without served values is refused
// wherever it appears.
struct Setting {
  std::string_view dial;
  std::string_view key;
  std::vector<std::string_view> served;  // scalars accepted as they are
  std::string_view reason;               // of the refusal of anything else
};

constexpr std::string_view kNoTokens = "only whole sequences are kept so far (tokens: {keep: all})";
constexpr std::string_view kNoBasis =
    "only the identity basis exists so far; others need a calibrated profile";
constexpr std::string_view kOnePlane = "all groups share one width so far";
constexpr std::string_view kBoundary =
    "an exact window longer than the incomplete page needs boundary records, which do not exist yet";

// Keys with a range instead of a list (bits.width, hot.sink, stream.page_tokens) are read in apply().
const std::vector<Setting>& settings() {
  static const std::vector<Setting> kSettings{
      {"layers", "share", {"none"}, "every layer owns its bank so far"},
      {"layers", "merge", {}, "banks cannot be merged yet"},
      {"heads", "join", {"1"}, "one stored vector per KV head so far"},
      {"tokens", "keep", {"all"}, kNoTokens},
      {"tokens", "score", {}, kNoTokens},
      {"tokens", "budget", {}, kNoTokens},
      {"tokens", "when", {}, kNoTokens},
      {"tokens", "then", {}, kNoTokens},
      {"tokens", "choose", {}, kNoTokens},
      {"tokens", "recovery", {}, kNoTokens},
      {"features", "basis", {"identity"}, kNoBasis},
      {"features", "keep", {"1", "1.0"}, "the identity basis has no unimportant features to leave out"},
      {"features", "allocate", {}, "nothing is left out, so there is nothing to allocate"},
      {"features", "site", {"post"}, "keys are stored after RoPE so far"},
      {"features", "source", {}, kNoBasis},
      {"features", "key", {}, kNoBasis},
      {"features", "value", {}, kNoBasis},
      {"bits", "quantizer", {"embedded"}, "only embedded codes exist so far"},
      {"bits", "width", {"full", "8"}, "widths served so far: full, 8"},
      {"bits",
       "axis",
       {"token"},
       "scales per channel need blocks that complete together, which do not exist yet"},
      {"bits", "group", {"16"}, "groups have 16 features"},
      {"bits", "scale", {}, "one norm per token and stored vector is the only scale so far"},
      {"bits", "by_class", {}, "pages have one token class so far"},
      {"bits", "outliers", {}, "outliers have no plane yet"},
      {"bits", "key", {}, kOnePlane},
      {"bits", "value", {}, kOnePlane},
      {"hot", "sink", {}, ""},
      {"hot", "recent", {"0"}, kBoundary},
      {"hot", "flush", {}, kBoundary},
      {"stream", "levels", {"1", "1.0"}, "pages have one level so far"},
      {"stream", "spill", {"all"}, "a spilled page keeps all its levels so far"},
      {"stream", "prefill", {"encoded"}, kBoundary},
      {"stream", "page_tokens", {}, ""},
  };
  return kSettings;
}

class Reader {
 public:
  explicit Reader(const std::string& where) : where_(where) {}

  Result<PageSpec> read(const YAML::Node& root) {
    if (!root.IsMap())
      return error(root,
                   "expected a map of dials (name, layers, heads, tokens, features, bits, hot, stream)");
    LOWKEY_TRY(no_duplicates(root, "the recipe"));
    spec_.recipe.clear();
    for (const auto& entry : root) {
      const auto name = entry.first.as<std::string>();
      if (name == "name") {
        if (!entry.second.IsScalar()) return error(entry.second, "name: expected a word");
        spec_.recipe = entry.second.Scalar();
      } else {
        LOWKEY_TRY(read_dial(name, entry.first, entry.second));
      }
    }
    if (spec_.recipe.empty()) return error(root, "name: expected one, found none");
    return finish(root);
  }

 private:
  Error error(const YAML::Node& at, const std::string& what) const {
    return Error{Code::kBadInput, fmt::format("{}:{}: {}", where_, at.Mark().line + 1, what), {}};
  }

  Status no_duplicates(const YAML::Node& map, std::string_view name) const {
    std::set<std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) return error(entry.first, fmt::format("{}: a key must be a word", name));
      if (!seen.insert(entry.first.Scalar()).second) {
        return error(entry.first, fmt::format("{}: key '{}' appears twice", name, entry.first.Scalar()));
      }
    }
    return {};
  }

  Status read_dial(const std::string& dial, const YAML::Node& name, const YAML::Node& node) {
    std::string known;
    for (const Setting& setting : settings()) {
      if (setting.dial == dial) known += fmt::format("{}{}", known.empty() ? "" : ", ", setting.key);
    }
    if (known.empty()) {
      return error(
          name,
          fmt::format("unknown key '{}'; known: name, layers, heads, tokens, features, bits, hot, stream",
                      dial));
    }
    if (!node.IsMap()) return error(node, fmt::format("{}: expected a map of {}", dial, known));
    LOWKEY_TRY(no_duplicates(node, dial));
    for (const auto& entry : node) {
      const auto key = entry.first.as<std::string>();
      const auto& all = settings();
      const auto setting = std::find_if(all.begin(), all.end(),
                                        [&](const Setting& s) { return s.dial == dial && s.key == key; });
      if (setting == all.end()) {
        return error(entry.first, fmt::format("unknown key '{}' in {}; known: {}", key, dial, known));
      }
      LOWKEY_TRY(apply(*setting, entry.second));
    }
    return {};
  }

  Status apply(const Setting& setting, const YAML::Node& value) {
    if (setting.dial == "hot" && setting.key == "sink")
      return read_int(setting, value, 0, 4096, &spec_.sink_tokens);
    if (setting.key == "page_tokens") return read_int(setting, value, 16, 256, &spec_.page_tokens);
    const YAML::Node scalar = value.IsSequence() && value.size() == 1 ? value[0] : value;  // levels: [1.0]
    const bool served =
        scalar.IsScalar() && std::ranges::find(setting.served, scalar.Scalar()) != setting.served.end();
    if (!served) {
      return error(value, fmt::format("{}: {}: {} is not supported: {}", setting.dial, setting.key,
                                      text(value), setting.reason));
    }
    if (setting.key == "quantizer") quantizer_given_ = true;
    if (setting.key == "width" && scalar.Scalar() != "full") {
      spec_.key = PageSpec::embedded("", scalar.as<int>(), 0).key;
      spec_.value = spec_.key;
    }
    return {};
  }

  Status read_int(const Setting& setting, const YAML::Node& value, int low, int high, int* out) {
    int number = 0;
    if (!value.IsScalar() || !YAML::convert<int>::decode(value, number) || number < low || number > high) {
      return error(value, fmt::format("{}: {}: expected a whole number from {} to {}, found {}", setting.dial,
                                      setting.key, low, high, text(value)));
    }
    *out = number;
    return {};
  }

  Result<PageSpec> finish(const YAML::Node& root) const {
    if (spec_.page_tokens % 16 != 0) {
      return error(
          root["stream"]["page_tokens"],
          fmt::format("stream: page_tokens: expected a multiple of 16, found {}", spec_.page_tokens));
    }
    if (spec_.sink_tokens > spec_.page_tokens) {
      return error(root["hot"]["sink"],
                   fmt::format("hot: sink: expected at most one page ({} tokens), found {}",
                               spec_.page_tokens, spec_.sink_tokens));
    }
    if (quantizer_given_ && spec_.key.quantizer == Quantizer::kFull) {
      return error(root["bits"]["quantizer"], "bits: quantizer: nothing is quantized at width: full");
    }
    return spec_;
  }

  static std::string text(const YAML::Node& node) {
    YAML::Emitter out;
    out << YAML::Flow << node;
    return out.good() ? fmt::format("'{}'", out.c_str()) : "a value";
  }

  const std::string& where_;
  PageSpec spec_;
  bool quantizer_given_ = false;
};

}  // namespace

Result<PageSpec> parse_recipe(const std::string& yaml, const std::string& where) {
  try {
    return Reader(where).read(YAML::Load(yaml));
  } catch (const YAML::Exception& problem) {
    return Error{Code::kBadInput, fmt::format("{}:{}: {}", where, problem.mark.line + 1, problem.msg), {}};
  }
}

Result<PageSpec> read_recipe(const std::filesystem::path& file) {
  if (file.empty()) return PageSpec{};
  std::ifstream in(file);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return Error{
        Code::kBadInput, fmt::format("{}: expected a recipe file, cannot read it", file.string()), {}};
  }
  return parse_recipe(text.str(), file.string());
}

}  // namespace lowkey::kvstore
