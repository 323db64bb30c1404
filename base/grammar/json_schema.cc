#include "base/grammar/json_schema.h"

#include <boost/json.hpp>

#include "base/grammar/schema_compiler.h"

namespace lowkey::grammar {

namespace json = boost::json;

Result<Automaton> compile_json_schema(std::string_view schema) {
  const auto refused = [](const std::string& why) {
    return Error{Code::kInvalidArgument, "JSON schema: " + why, {}};
  };
  if (schema.size() > kMaxSchemaBytes)
    return refused(fmt::format("expected at most {} bytes, found {}", kMaxSchemaBytes, schema.size()));
  boost::system::error_code error;
  json::parse_options options;
  options.max_depth = 64;
  const json::value document =
      json::parse(json::string_view(schema.data(), schema.size()), error, {}, options);
  if (error) return refused(error.message());
  try {
    SchemaCompiler compiler(document);
    auto automaton = compiler.compile();
    if (!automaton.ok()) return refused(automaton.error().message);
    return automaton;
  } catch (const SchemaError& refusal) {
    return refused(refusal.message);
  }
}

}  // namespace lowkey::grammar
