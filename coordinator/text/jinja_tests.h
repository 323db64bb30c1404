// Jinja's tests: what stands behind `is`.
#pragma once

#include <string_view>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

bool has_test(std::string_view name);
// REQUIRES: has_test(name). Throws TemplateError.
bool apply_test(std::string_view name, const Value& self, const Arguments& arguments, Budget& budget);

}  // namespace lowkey::coordinator::jinja
