#include "kvstore/recipe/recipe.h"

#include <spdlog/fmt/fmt.h>

#include <fstream>
#include <sstream>

#include "base/one_line.h"
#include "kvstore/recipe/recipe_reader.h"

namespace lowkey::kvstore {

namespace {

Result<Recipe> parse(const std::string& yaml, const std::string& where, int page_tokens, bool spilled) {
  try {
    return RecipeReader(where, page_tokens, spilled).read(YAML::Load(yaml));
  } catch (const YAML::Exception& problem) {
    return Error{
        Code::kBadInput, fmt::format("{}:{}: {}", where, problem.mark.line + 1, one_line(problem.msg)), {}};
  }
}

Result<Recipe> read(const std::filesystem::path& file, int page_tokens, bool spilled) {
  std::ifstream in(file);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return Error{
        Code::kBadInput, fmt::format("{}: expected a recipe file, cannot read it", file.string()), {}};
  }
  return parse(text.str(), file.string(), page_tokens, spilled);
}

}  // namespace

Result<Recipe> parse_recipe(const std::string& yaml, const std::string& where) {
  return parse(yaml, where, Recipe().page_tokens, false);
}

Result<Recipe> read_recipe(const std::filesystem::path& file, int page_tokens) {
  if (!file.empty()) return read(file, page_tokens, false);
  Recipe exact;
  exact.page_tokens = page_tokens;
  return exact;
}

Result<Recipe> read_spill_recipe(const std::filesystem::path& file, int page_tokens) {
  return read(file, page_tokens, true);
}

}  // namespace lowkey::kvstore
