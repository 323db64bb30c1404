#include "kvstore/recipe/recipe.h"

#include <spdlog/fmt/fmt.h>

#include <fstream>

#include "base/one_line.h"
#include "kvstore/recipe/recipe_reader.h"

namespace lowkey::kvstore {

namespace {

constexpr size_t kMaxBytes = 64 << 10;  // real ones have 1-2 KB

Result<Recipe> parse(const std::string& yaml, const std::string& where, int page_tokens, bool spilled) {
  try {
    return RecipeReader(where, page_tokens, spilled).read(YAML::Load(yaml));
  } catch (const YAML::Exception& problem) {
    return Error{
        Code::kBadInput, fmt::format("{}:{}: {}", where, problem.mark.line + 1, one_line(problem.msg)), {}};
  }
}

Result<Recipe> read(const std::filesystem::path& file, int page_tokens, bool spilled) {
  const auto bad = [&](const std::string& found) {
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a recipe file such as recipes/q8.yaml, {}", file.string(), found),
                 {}};
  };
  std::error_code ec;
  if (!std::filesystem::is_regular_file(file, ec))
    return bad(std::filesystem::exists(file, ec) ? "found something else" : "found nothing there");
  std::string text(kMaxBytes + 1, '\0');
  std::ifstream in(file, std::ios::binary);
  in.read(text.data(), std::streamsize(text.size()));
  if (in.bad() || !in.is_open()) return bad("found one that cannot be read");
  text.resize(in.gcount());
  if (text.size() > kMaxBytes) return bad(fmt::format("found one of more than {} bytes", kMaxBytes));
  return parse(text, file.string(), page_tokens, spilled);
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
