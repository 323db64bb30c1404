// A recipe: a short YAML file that sets the five dials (kvstore/README.md). This reads it, checks every key,
// and resolves what does not depend on the model into a PageSpec.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kvstore {

// Reads `file`; an empty path is the built-in `exact`. Errors, kBadInput with file and line: not YAML, an
// unknown key, a value out of range, and a known setting that this version cannot serve, by name and with the
// reason.
Result<kernels::PageSpec> read_recipe(const std::filesystem::path& file);

// The same from text; `where` stands for the file in errors.
Result<kernels::PageSpec> parse_recipe(const std::string& yaml, const std::string& where);

}  // namespace lowkey::kvstore
