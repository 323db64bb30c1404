#include "kvstore/recipe/recipe_fields.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/one_line.h"

namespace lowkey::kvstore {
namespace {

std::string joined(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}: {}", path, key);
}

}  // namespace

std::string RecipeFields::quoted(const YAML::Node& node) {
  YAML::Emitter out;
  out << YAML::Flow << node;
  return out.good() ? fmt::format("'{}'", out.c_str()) : "a value";
}

Error RecipeFields::error(const YAML::Node& at, const std::string& what) const {
  return Error{Code::kBadInput, fmt::format("{}:{}: {}", where_, at.Mark().line + 1, one_line(what)), {}};
}

Error RecipeFields::error_in(const char* key, const std::string& what) const {
  const YAML::Node node = std::as_const(root_)[key];
  return error(node ? node : root_, what);
}

Status RecipeFields::read_map(const YAML::Node& map, const std::string& path,
                              const std::vector<Key>& keys) const {
  std::string known;
  for (const Key& key : keys) known += fmt::format("{}{}", known.empty() ? "" : ", ", key.name);
  if (!map.IsMap())
    return error(map, fmt::format("{}: expected a map of {}", path.empty() ? "recipe" : path, known));
  std::set<std::string> seen;
  for (const auto& entry : map) {
    if (!entry.first.IsScalar()) return error(entry.first, joined(path, "a key must be a word"));
    const std::string name = entry.first.Scalar();
    const auto key = std::ranges::find(keys, name, &Key::name);
    if (key == keys.end())
      return error(entry.first, fmt::format("unknown key '{}'{}{}; known: {}", name,
                                            path.empty() ? "" : " in ", path, known));
    if (!seen.insert(name).second)
      return error(entry.first, joined(path, fmt::format("key '{}' appears twice", name)));
    LOWKEY_TRY(key->read(entry.second));
  }
  return {};
}

RecipeFields::Read RecipeFields::refuse(std::string path, std::string_view reason) const {
  return [this, path, reason](const YAML::Node& node) -> Status {
    return error(node, fmt::format("{}: {} is not served: {}", path, quoted(node), reason));
  };
}

RecipeFields::Read RecipeFields::integer(std::string path, int low, int high, int& out) const {
  return [this, path, low, high, &out](const YAML::Node& node) -> Status {
    if (node.IsScalar() && YAML::convert<int>::decode(node, out) && out >= low && out <= high) return {};
    return error(node, fmt::format("{}: expected a whole number from {} to {}, found {}", path, low, high,
                                   quoted(node)));
  };
}

RecipeFields::Read RecipeFields::text(std::string path, std::string& out) const {
  return [this, path, &out](const YAML::Node& node) -> Status {
    if (!node.IsScalar() || node.Scalar().empty() || node.Scalar().find('/') != std::string::npos)
      return error(node, fmt::format("{}: expected a word, found {}", path, quoted(node)));
    out = node.Scalar();
    return {};
  };
}

}  // namespace lowkey::kvstore
