// The functions that every template can call by name.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

std::vector<std::pair<std::string_view, Function>> global_functions();

}  // namespace lowkey::coordinator::jinja
