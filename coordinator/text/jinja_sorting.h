// Filters that compare items with each other.
#pragma once

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

// All throw TemplateError: items that cannot be compared, more work than the budget has.
// Arguments: reverse, case_sensitive, attribute ("a.b": of what it has).
Value sort_items(const Value& self, const Arguments& arguments, Budget& budget);
// Pairs of a dict. Arguments: case_sensitive, by ("key" or "value"), reverse.
Value sort_dict(const Value& self, const Arguments& arguments, Budget& budget);
// The first of equal ones stays. Arguments: case_sensitive, attribute.
Value unique_items(const Value& self, const Arguments& arguments, Budget& budget);

}  // namespace lowkey::coordinator::jinja
