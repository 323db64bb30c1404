// The `post_processor` of tokenizer.json, reduced to what it does to one text: ids before it and ids behind
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

struct SpecialFrame {
  std::vector<int32_t> before;
  std::vector<int32_t> behind;
};

Result<SpecialFrame> parse_post_processor(const JsonNode& node, int depth = 0);

}  // namespace lowkey::coordinator
