// The methods of Python's str that chat templates call.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

bool has_string_method(std::string_view name);
// REQUIRES: has_string_method(name). Throws TemplateError.
Value call_string_method(std::string_view name, const std::string& self, const Arguments& arguments,
                         Budget& budget);

// Without `chars` (null or none): whitespace.
std::string strip_text(std::string_view text, const Value* chars, bool left, bool right);
std::string capitalize(std::string_view text);
std::string title_case(std::string_view text);
// Arguments: width (spaces, or a text), first, blank: whether the first line and empty ones are indented.
std::string indent_text(const std::string& text, const Arguments& arguments, Budget& budget);
// Arguments: old, new, count.
std::string replace_text(const std::string& text, const Arguments& arguments, Budget& budget);

}  // namespace lowkey::coordinator::jinja
