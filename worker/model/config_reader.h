// The fields of config.json and generation_config.json, checked one by one. Private to worker/model and to
// tests (it pulls in Boost.JSON).
#pragma once

#include <boost/json/object.hpp>
#include <string>

#include "worker/model/model_config.h"

namespace lowkey::worker {

// Everything but the name. `file` stands for the file in errors: kBadInput, one line naming the field, what
// was expected and what was found.
Result<ModelConfig> read_config(const boost::json::object& object, const std::string& file);

// Over what `config` has: generation_config.json's token ids count before those of config.json.
Status read_generation_config(const boost::json::object& object, const std::string& file,
                              ModelConfig& config);

}  // namespace lowkey::worker
