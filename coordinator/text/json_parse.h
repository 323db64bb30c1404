// Parses the JSON files of a model folder.
#pragma once

#include <boost/json/storage_ptr.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lowkey::coordinator {

// A document whose root is an object; the error names `file`, position and problem.
Result<boost::json::value> parse_json(std::string_view text, const std::string& file,
                                      boost::json::storage_ptr storage);

}  // namespace lowkey::coordinator
