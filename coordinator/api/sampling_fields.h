// The parameters of a request that say how tokens are chosen and when an answer ends. Private to
// coordinator/api.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/api/generation_request.h"
#include "coordinator/api/json_fields.h"

namespace lowkey::coordinator {

inline std::string to_string(const boost::json::string& text) {
  return {text.data(), text.size()};
}

// False, with the fields' error set, where an item is no token id.
bool read_token_ids(const boost::json::array& array, Fields& fields, const char* name,
                    std::vector<int32_t>& ids);

// REQUIRES: request.endpoint is set.
void read_sampling(Fields& fields, const SamplingDefaults& defaults, GenerationRequest& request);

}  // namespace lowkey::coordinator
