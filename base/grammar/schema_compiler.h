// The recursion behind compile_json_schema(). Private to base/grammar. Throws SchemaError.
#pragma once

#include <boost/json.hpp>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/grammar/automaton.h"
#include "base/grammar/schema_merge.h"
#include "base/grammar/text_pattern.h"

namespace lowkey::grammar {

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const Schema& document) : document_(document), merger_(document) {}

  Result<Automaton> compile();

 private:
  using Object = boost::json::object;

  // Everything below adds ways from node to node.
  void value(const Schema& schema, NodeId from, NodeId to, const std::string& path);
  void plain(const Object& schema, NodeId from, NodeId to, const std::string& path);
  void type(const std::string& name, const Object& schema, NodeId from, NodeId to, const std::string& path);
  void object(const Object& schema, NodeId from, NodeId to, const std::string& path);
  void check_names(const Schema& schema, const std::string& path);
  NodeId further_members(const Schema& schema, const std::vector<std::string>& names, NodeId none,
                         NodeId some, const std::string& path);
  void array(const Object& schema, NodeId from, NodeId to, const std::string& path);
  void string(const Object& schema, NodeId from, NodeId to, const std::string& path);
  void number(const Object& schema, bool whole, NodeId from, NodeId to, const std::string& path);
  void character(NodeId from, NodeId to);
  void constant(const boost::json::value& value, NodeId from, NodeId to);

  RuleId rule_of(const Schema& schema, const std::string& path);
  RuleId rule_of_reference(const std::string& reference, const std::string& path);
  RuleId any_value();
  RuleId any_string();
  RuleId any_character();
  RuleId white_space();
  NodeId spaced(NodeId from);  // behind white space, or none
  NodeId comma(NodeId from);   // and white space

  static std::optional<int> count(const Object& schema, const char* key, int64_t limit,
                                  const std::string& path);
  std::optional<TextPattern> pattern_of(const Object& schema, const std::string& path) const;
  bool admits(const Object& schema, const boost::json::value& value, const std::string& path) const;

  const Schema& document_;
  SchemaMerger merger_;
  AutomatonBuilder builder_;
  std::map<std::string, RuleId> references_;
  std::optional<RuleId> any_value_, any_string_, any_character_, white_space_;
  int depth_ = 0;
};

}  // namespace lowkey::grammar
