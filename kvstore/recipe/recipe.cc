#include "kvstore/recipe/recipe.h"

#include <spdlog/fmt/fmt.h>

#include <fstream>
#include <sstream>

#include "base/one_line.h"
#include "kvstore/recipe/recipe_reader.h"

namespace lowkey::kvstore {

Result<Recipe> parse_recipe(const std::string& yaml, const std::string& where) {
  try {
    return RecipeReader(where).read(YAML::Load(yaml));
  } catch (const YAML::Exception& problem) {
    return Error{
        Code::kBadInput, fmt::format("{}:{}: {}", where, problem.mark.line + 1, one_line(problem.msg)), {}};
  }
}

Result<Recipe> read_recipe(const std::filesystem::path& file) {
  if (file.empty()) return Recipe{};
  std::ifstream in(file);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return Error{
        Code::kBadInput, fmt::format("{}: expected a recipe file, cannot read it", file.string()), {}};
  }
  return parse_recipe(text.str(), file.string());
}

}  // namespace lowkey::kvstore
