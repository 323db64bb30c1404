// JSON schema to an automaton over the bytes of JSON texts: everything that it accepts satisfies the schema
// (draft 2020-12); of several ways to write the same it accepts some.
//
// - Objects have their properties in the order of the schema, and others behind them where
// additionalProperties is
//   given, or where there are no properties at all. Keys are written without needless escapes.
// - White space: none, one space, or a line break with up to 20 spaces or tabs, behind { [ , : and before }
// ].
// - Numbers have at most 15 digits before and behind the point.
// - Where `type` is absent, the keywords say which types are meant; where there are none, any value is.
//
// Keywords: type, enum, const, properties, required, additionalProperties, propertyNames (of any names),
// items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time,
// duration, uuid, ipv4, ipv6, hostname, email, uri; beside a pattern it says nothing), minimum, maximum,
// exclusiveMinimum, exclusiveMaximum, anyOf, oneOf (of alternatives that plainly exclude each other), allOf,
// $ref within the document. Annotations are skipped, all other keywords are refused by name.
#pragma once

#include <string_view>

#include "base/grammar/automaton.h"
#include "base/result.h"

namespace lowkey::grammar {

inline constexpr size_t kMaxSchemaBytes = 64 << 10;

// kInvalidArgument: one line with the place in the schema ("#/properties/a") and what is wrong there.
Result<Automaton> compile_json_schema(std::string_view schema);

}  // namespace lowkey::grammar
