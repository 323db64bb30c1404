// A compiled regular expression over UTF-8 (PCRE2), with the meaning that tokenizer.json gives its patterns.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace lowkey::coordinator {

// Immutable and thread-safe. Patterns are written for Oniguruma; where the two differ, compile() translates
// (\s, \w) or refuses (class intersections, \h), so that no pattern silently means something else.
class Regex {
 public:
  // `where` begins the error message, e.g. "tokenizer.json: pre_tokenizer.pattern".
  static Result<Regex> compile(std::string_view pattern, const std::string& where);
  static std::string escape(std::string_view literal);

  // Walks through texts, one after another; owns the scratch memory of matching, so not thread-safe.
  class Finder {
   public:
    explicit Finder(const Regex& regex);
    Finder(Finder&&) noexcept;
    ~Finder();
    void start(std::string_view text);
    // Byte range of the next match, never before the end of the last one. Ends early (as if nothing matched)
    // when a pattern exceeds PCRE2's match limit.
    std::optional<std::pair<size_t, size_t>> next();

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace lowkey::coordinator
