// What reading any part of a recipe needs: maps of known keys, and how a key's value is taken. Every mistake
// is one line with its place, what was expected and what was found. Private to this folder (it pulls in
// yaml-cpp).
#pragma once

#include <spdlog/fmt/fmt.h>
#include <yaml-cpp/yaml.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey::kvstore {

class RecipeFields {
 protected:
  // `where` stands for the file in errors; outlives this.
  explicit RecipeFields(const std::string& where) : where_(where) {}

  using Read = std::function<Status(const YAML::Node&)>;
  struct Key {
    std::string_view name;
    Read read;
  };
  template <class T>
  struct Word {
    std::string_view word;
    T value;
  };
  struct Unserved {
    std::string_view word;
    std::string_view reason;
  };

  // Every key of `map` is one of `keys` and appears once; `path` is "" at the top.
  Status read_map(const YAML::Node& map, const std::string& path, const std::vector<Key>& keys) const;
  Read refuse(std::string path, std::string_view reason) const;
  Read integer(std::string path, int low, int high, int& out) const;
  template <class T>
  Read number(std::string path, double low, double high, T& out) const;
  Read text(std::string path, std::string& out) const;
  // `out` takes the value of the word; other words are refused, the unserved ones by their reason.
  template <class T, class Out>
  Read choice(std::string path, std::vector<Word<T>> words, std::vector<Unserved> unserved, Out& out) const;

  static std::string quoted(const YAML::Node& node);
  Error error(const YAML::Node& at, const std::string& what) const;
  Error error_in(const char* key, const std::string& what) const;  // at the line of a top-level key

  const std::string& where_;
  YAML::Node root_;
};

template <class T>
RecipeFields::Read RecipeFields::number(std::string path, double low, double high, T& out) const {
  return [this, path, low, high, &out](const YAML::Node& node) -> Status {
    double value = 0;
    if (!node.IsScalar() || !YAML::convert<double>::decode(node, value) || !(value >= low && value <= high))
      return error(
          node, fmt::format("{}: expected a number from {} to {}, found {}", path, low, high, quoted(node)));
    out = value;
    return {};
  };
}

template <class T, class Out>
RecipeFields::Read RecipeFields::choice(std::string path, std::vector<Word<T>> words,
                                        std::vector<Unserved> unserved, Out& out) const {
  return [this, path, words, unserved, &out](const YAML::Node& node) -> Status {
    const std::string_view found = node.IsScalar() ? std::string_view(node.Scalar()) : std::string_view();
    std::string known;
    for (const Word<T>& word : words) {
      if (word.word == found) {
        out = word.value;
        return {};
      }
      known += fmt::format("{}{}", known.empty() ? "" : ", ", word.word);
    }
    for (const Unserved& word : unserved)
      if (word.word == found)
        return error(node, fmt::format("{}: {} is not served: {}", path, quoted(node), word.reason));
    return error(node, fmt::format("{}: expected {}{}, found {}", path, words.size() > 1 ? "one of " : "",
                                   known, quoted(node)));
  };
}

}  // namespace lowkey::kvstore
