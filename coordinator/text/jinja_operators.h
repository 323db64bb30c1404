// Python's operators on template values. All throw TemplateError.
#pragma once

#include <string_view>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

// op: + - * / // % ~
Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget);
Value negate(const Value& value);
// op: == != < <= > >= in, not in
bool holds(std::string_view op, const Value& a, const Value& b, Budget& budget);
// self[index]; undefined where there is no such item.
Value item_of(const Value& self, const Value& index);
// self[begin:end:step]; none where left out.
Value slice_of(const Value& self, const Value& begin, const Value& end, const Value& step, Budget& budget);

}  // namespace lowkey::coordinator::jinja
