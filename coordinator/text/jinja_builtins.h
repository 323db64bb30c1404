// Jinja's filters, and the methods of Python's str and dict that chat templates call.
#pragma once

#include <string_view>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

bool has_filter(std::string_view name);
bool has_method(const Value& self, std::string_view name);

// REQUIRES: has_...(name). All throw TemplateError.
Value apply_filter(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget);
Value call_method(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget);

// self.name as templates mean it: an entry of a dict, else undefined. Throws where self is undefined.
Value attribute_of(const Value& self, std::string_view name);

}  // namespace lowkey::coordinator::jinja
