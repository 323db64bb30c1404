// Values as JSON, as Python's json.dumps writes them.
#pragma once

#include <string>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

// `indent` < 0: on one line. Throws TemplateError for what is not JSON.
std::string to_json(const Value& value, int indent);

}  // namespace lowkey::coordinator::jinja
