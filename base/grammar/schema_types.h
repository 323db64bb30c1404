// What the keywords `type` and `enum` of a JSON schema say, and the types of values. Private to base/grammar:
// it holds Boost.JSON.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lowkey::grammar {

std::string_view view(boost::json::string_view text);

// The types that `type` names; all seven where it is absent.
std::vector<std::string> types_of(const boost::json::object& schema);
// The values that enum and const leave; null: they say nothing.
const boost::json::array* enum_of(const boost::json::object& schema);
bool is_number_type(std::string_view type);
std::string type_of(const boost::json::value& value);  // "integer" for whole numbers
bool has_type(const boost::json::value& value, const std::vector<std::string>& types);
bool equal(const boost::json::value& a, const boost::json::value& b);  // as JSON: 1 and 1.0 are
// The types that both of them allow.
boost::json::array types_of_both(const boost::json::object& a, const boost::json::object& b);

}  // namespace lowkey::grammar
