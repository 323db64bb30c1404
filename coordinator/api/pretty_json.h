// JSON for human eyes: a line per member, numbers as people write them. Private to coordinator/api.
#pragma once

#include <boost/json.hpp>
#include <string>

namespace lowkey::coordinator {

// Ends with a line break. Objects and arrays that hold nothing but scalars stay on one line where they fit.
std::string pretty_json(const boost::json::value& value);

}  // namespace lowkey::coordinator
