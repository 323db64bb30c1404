// JSON schemas without $ref, allOf and oneOf: what those say is merged into plain keywords. Private to
// base/grammar: it holds Boost.JSON.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey::grammar {

using Schema = boost::json::value;

// An error about a schema: thrown inside the compiler, which is one recursion over untrusted JSON.
struct SchemaError {
  std::string message;
};

class SchemaMerger {
 public:
  explicit SchemaMerger(const Schema& document) : document_(document) {}

  // What "#/..." points at.
  const Schema& resolve(std::string_view reference, const std::string& path) const;
  // An object that has no $ref, allOf or oneOf; `false` where nothing satisfies it; `true`. What it still
  // names, it names in anyOf, properties and items.
  Schema normalized(const Schema& schema, const std::string& path, int depth = 0) const;
  // Both at once.
  Schema merged(const Schema& a, const Schema& b, const std::string& path) const;

 private:
  void charge(const Schema& schema, const std::string& path) const;
  void charge_pairs(const boost::json::array* a, const boost::json::array* b, const std::string& path) const;
  void add_work(size_t work, const std::string& path) const;
  bool disjoint(const Schema& a, const Schema& b, const std::string& path, int depth) const;
  bool are_disjoint(const Schema& a, const Schema& b, const std::string& path, int depth) const;
  void merge_objects(const boost::json::object& a, const boost::json::object& b,
                     boost::json::object* out) const;

  const Schema& document_;
  mutable size_t work_ = 0;
};

}  // namespace lowkey::grammar
