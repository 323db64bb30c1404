#include "coordinator/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

// Real pre-tokenizer patterns have some hundred bytes; the bound keeps a hostile file from costing memory.
constexpr size_t kMaxPatternBytes = 64 * 1024;
constexpr size_t kJitStackBytes = 1024 * 1024;

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct JitStackDeleter {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

PCRE2_SPTR bytes_of(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

// PCRE2's \s has U+180E on top of White_Space, and its \w lacks marks.
constexpr std::string_view kSpaceClass = R"(\t-\r \x{85}\p{Z})";
constexpr std::string_view kWordClass = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

struct Translator {
  std::string_view pattern;
  std::string out;
  std::string problem;

  void shorthand(char letter, bool in_class) {
    const bool negated = letter == 'S' || letter == 'W';
    if (negated &&
        in_class) {  // inside a class PCRE2's own meaning differs only for the rare characters above
      (out += '\\') += letter;
      return;
    }
    const std::string_view members = letter == 's' || letter == 'S' ? kSpaceClass : kWordClass;
    if (in_class) {
      out += members;
    } else {
      ((out += negated ? "[^" : "[") += members) += ']';
    }
  }

  void run() {
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); ++i) {
      const char c = pattern[i];
      if (c == '\\' && i + 1 < pattern.size()) {
        const char next = pattern[++i];
        if (next == 's' || next == 'S' || next == 'w' || next == 'W') {
          shorthand(next, in_class);
        } else if (next == 'h' || next == 'H') {
          problem = "\\h";
        } else {
          (out += c) += next;
        }
        continue;
      }
      if (in_class) {
        if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') problem = "class intersection &&";
        if (c == '[' && (i + 1 >= pattern.size() || pattern[i + 1] != ':')) problem = "nested class";
        if (c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {
          const size_t end = pattern.find(":]", i);
          if (end != std::string_view::npos) {
            out += pattern.substr(i, end + 2 - i);
            i = end + 1;
            continue;
          }
        }
        in_class = c != ']';
      } else if (c == '[') {
        in_class = true;
        out += c;
        if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
        if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
        continue;
      }
      out += c;
    }
  }
};

}  // namespace

struct Regex::Impl {
  std::unique_ptr<pcre2_code, CodeDeleter> code;
};

Result<Regex> Regex::compile(std::string_view pattern, const std::string& where) {
  const auto bad = [&](const std::string& why) {
    return Error{Code::kBadInput, fmt::format("{}: regular expression {}", where, why), {}};
  };
  if (pattern.size() > kMaxPatternBytes) {
    return bad(fmt::format("of {} bytes, at most {} supported", pattern.size(), kMaxPatternBytes));
  }
  Translator translator{pattern, {}, {}};
  translator.run();
  if (!translator.problem.empty())
    return bad(fmt::format("uses {}, which is not supported", translator.problem));

  int code = 0;
  PCRE2_SIZE offset = 0;
  // Oniguruma's ^ and $ always match at line ends, hence MULTILINE.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  auto impl = std::make_shared<Impl>();
  impl->code.reset(
      pcre2_compile(bytes_of(translator.out), translator.out.size(), kOptions, &code, &offset, nullptr));
  if (!impl->code) {
    PCRE2_UCHAR text[128];
    pcre2_get_error_message(code, text, sizeof text);
    return bad(fmt::format("is malformed at byte {}: {}", offset, reinterpret_cast<const char*>(text)));
  }
  // Where the JIT is unavailable or refuses the pattern, matching falls back to the interpreter by itself.
  pcre2_jit_compile(impl->code.get(), PCRE2_JIT_COMPLETE);
  Regex regex;
  regex.impl_ = std::move(impl);
  return regex;
}

std::string Regex::escape(std::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) out += '\\';
    out += c;
  }
  return out;
}

struct Regex::Finder::Impl {
  std::shared_ptr<const Regex::Impl> regex;
  std::string_view text;
  std::unique_ptr<pcre2_match_data, MatchDataDeleter> match;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context;
  std::unique_ptr<pcre2_jit_stack, JitStackDeleter> stack;
  size_t from = 0;
  uint32_t options = 0;

  int match_here() const {
    return pcre2_match(regex->code.get(), bytes_of(text), text.size(), from, options, match.get(),
                       context.get());
  }
};

Regex::Finder::Finder(const Regex& regex) : impl_(std::make_unique<Impl>()) {
  impl_->regex = regex.impl_;
  impl_->match.reset(pcre2_match_data_create(1, nullptr));
}
Regex::Finder::Finder(Finder&&) noexcept = default;
Regex::Finder::~Finder() = default;

void Regex::Finder::start(std::string_view text) {
  impl_->text = text;
  impl_->from = 0;
  impl_->options = 0;
}

std::optional<std::pair<size_t, size_t>> Regex::Finder::next() {
  if (impl_->from > impl_->text.size()) return std::nullopt;
  int found = impl_->match_here();
  if (found == PCRE2_ERROR_JIT_STACKLIMIT &&
      !impl_->stack) {  // rare: more than the 32 KiB on the thread's own stack
    impl_->context.reset(pcre2_match_context_create(nullptr));
    impl_->stack.reset(pcre2_jit_stack_create(kJitStackBytes / 8, kJitStackBytes, nullptr));
    pcre2_jit_stack_assign(impl_->context.get(), nullptr, impl_->stack.get());
    found = impl_->match_here();
  }
  impl_->options = PCRE2_NO_UTF_CHECK;  // the first call has checked the whole text
  if (found < 0) return std::nullopt;
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(impl_->match.get());
  const size_t begin = range[0], end = std::max(range[0], range[1]);
  impl_->from = end;
  if (begin == end) {  // an empty match: go on behind the next character
    impl_->from += end < impl_->text.size() ? next_utf8(impl_->text, end).bytes : 1;
  }
  return std::pair(begin, end);
}

}  // namespace lowkey::coordinator
