#include "coordinator/text/json_parse.h"

#include <boost/json/stream_parser.hpp>

#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

Result<boost::json::value> parse_json(std::string_view text, const std::string& file,
                                      boost::json::storage_ptr storage) {
  boost::json::error_code error;
  boost::json::stream_parser parser(std::move(storage));
  const size_t read = parser.write_some(text.data(), text.size(), error);
  if (!error && read < text.size()) error = boost::json::error::extra_data;
  if (!error) parser.finish(error);
  if (error) {
    return Error{Code::kBadInput,
                 fmt::format("{}: expected JSON, found {} at byte {}", file, error.message(), read),
                 {}};
  }
  boost::json::value value = parser.release();
  if (!value.is_object()) return JsonNode(value, file).wrong("an object");
  return value;
}

}  // namespace lowkey::coordinator
