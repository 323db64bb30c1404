// Parses a template. Throws SyntaxError, also for constructs that are not supported, naming them.
#pragma once

#include <string_view>

#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_lexer.h"

namespace lowkey::coordinator::jinja {

Block parse(std::string_view source);

}  // namespace lowkey::coordinator::jinja
