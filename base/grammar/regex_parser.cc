// TextPattern::regex: recursive descent, building the automaton as Thompson (1968) does.
#include <algorithm>
#include <optional>

#include "base/grammar/text_pattern.h"

namespace lowkey::grammar {
namespace {

using Range = std::pair<char32_t, char32_t>;
using Ranges = std::vector<Range>;

constexpr int kMaxDepth = 50;
// Characters that repetitions read anew, classes of many members among them.
constexpr size_t kMaxReadAgain = 1 << 20;

struct Fragment {
  int start, end;
};

Ranges negated(Ranges ranges, const Ranges& among) {
  std::ranges::sort(ranges);
  Ranges out;
  for (auto [low, high] : among) {
    for (const auto& [first, last] : ranges) {
      if (last < low || first > high) continue;
      if (first > low) out.emplace_back(low, first - 1);
      low = last + 1;
      if (low > high) break;
    }
    if (low <= high) out.emplace_back(low, high);
  }
  return out;
}

class Parser {
 public:
  explicit Parser(std::string_view text) {
    for (size_t pos = 0; pos < text.size();) text_.push_back(decode(text, pos));
  }

  Result<TextPattern> parse() {
    pattern_.start = pattern_.add_state();
    pattern_.end = pattern_.add_state();
    alternatives(pattern_.start, pattern_.end, 0, true);
    if (problem_.empty() && at_ < text_.size()) fail("')' without '('");
    if (!problem_.empty()) {
      return Error{
          Code::kInvalidArgument, fmt::format("{} at character {} of the pattern", problem_, at_), {}};
    }
    return std::move(pattern_);
  }

 private:
  static char32_t decode(std::string_view text, size_t& pos) {
    const auto lead = static_cast<uint8_t>(text[pos++]);
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
    char32_t code = more == 0 ? lead : lead & (0x3F >> more);
    for (int i = 0; i < more && pos < text.size(); ++i)
      code = code << 6 | (static_cast<uint8_t>(text[pos++]) & 0x3F);
    return code;
  }

  bool done() const { return at_ >= text_.size() || !problem_.empty(); }
  bool is(char32_t c) const { return !done() && text_[at_] == c; }
  bool accept(char32_t c) { return is(c) && ++at_ > 0; }
  void fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
  }

  void empty(int from, int to) { pattern_.states[from].empty.push_back(to); }
  void ranges(int from, const Ranges& of, int to) {
    for (const auto& [low, high] : of) pattern_.states[from].ranges.push_back({low, high, to});
  }
  void anything(int state) { ranges(state, {{0, TextPattern::kLastCharacter}}, state); }
  int state() {
    if (pattern_.states.size() >= TextPattern::kMaxStates) {
      fail("it is too large");
      return 0;
    }
    return pattern_.add_state();
  }

  // `whole`: of the pattern itself: there each alternative may be anchored, and otherwise has any text around
  // it.
  void alternatives(int start, int end, int depth, bool whole) {
    if (depth > kMaxDepth) return fail("groups nest too deeply");
    do {
      int from = state();
      empty(start, from);
      if (whole && !accept('^')) anything(from);
      const int first = state();
      empty(from, first);
      from = sequence(first, depth);
      const int last = state();
      empty(from, last);
      if (whole && !accept('$')) anything(last);
      empty(last, end);
      if (!done() && !is('|') && !is(')')) fail("an anchor that is not at an end of its alternative");
    } while (problem_.empty() && accept('|'));
  }

  int sequence(int from, int depth) {
    while (!done() && !is('|') && !is(')') && !is('$')) from = quantified(from, depth);
    return from;
  }

  int quantified(int from, int depth) {
    const size_t begin = at_;
    Fragment one = atom(depth);
    const auto times = quantifier();
    if (!problem_.empty()) return from;
    if (!times) {
      empty(from, one.start);
      return one.end;
    }
    const auto [least, most] = *times;
    const size_t behind = at_;
    // Each repetition is read anew.
    const auto again = [&] {
      if ((read_again_ += behind - begin) > kMaxReadAgain) fail("it is too large");
      at_ = begin;
      const Fragment copy = atom(depth);
      at_ = behind;
      return copy;
    };
    bool first = true;
    const auto next = [&] { return std::exchange(first, false) ? one : again(); };
    for (int i = 0; i < least && problem_.empty(); ++i) {
      const Fragment copy = next();
      empty(from, copy.start);
      from = copy.end;
    }
    const int end = state();
    if (most < 0) {
      const Fragment copy = next();
      const int loop = state();
      empty(from, loop);
      empty(loop, copy.start);
      empty(copy.end, loop);
      from = loop;
    }
    for (int i = least; i < most && problem_.empty(); ++i) {
      const Fragment copy = next();
      empty(from, end);
      empty(from, copy.start);
      from = copy.end;
    }
    empty(from, end);
    return end;
  }

  std::optional<std::pair<int, int>> quantifier() {
    std::pair<int, int> times;
    if (accept('*')) {
      times = {0, -1};
    } else if (accept('+')) {
      times = {1, -1};
    } else if (accept('?')) {
      times = {0, 1};
    } else if (accept('{')) {
      const auto low = number();
      if (!low) return fail("'{' without numbers"), std::nullopt;
      times = {*low, *low};
      if (accept(',')) times.second = number().value_or(-1);
      if (!accept('}')) return fail("'{' without '}'"), std::nullopt;
      if (times.second >= 0 && times.second < times.first)
        return fail("a range of repetitions that is empty"), std::nullopt;
      if (std::max(times.first, times.second) > TextPattern::kMaxRepetitions)
        return fail(fmt::format("more than {} repetitions", TextPattern::kMaxRepetitions)), std::nullopt;
    } else {
      return std::nullopt;
    }
    accept('?');  // which match is found first makes no difference here
    if (is('*') || is('+') || is('{')) fail("a quantifier behind a quantifier");
    return times;
  }

  std::optional<int> number() {
    std::optional<int> value;
    while (!done() && text_[at_] >= '0' && text_[at_] <= '9')
      value = std::min(value.value_or(0) * 10 + static_cast<int>(text_[at_++] - '0'), 1 << 20);
    return value;
  }

  Fragment atom(int depth) {
    const Fragment made{state(), state()};
    if (!problem_.empty()) return made;
    if (accept('(')) {
      if (accept('?') && !accept(':')) return fail("a group of the form '(?...'"), made;
      alternatives(made.start, made.end, depth + 1, false);
      if (!accept(')')) fail("'(' without ')'");
      return made;
    }
    if (is('*') || is('+') || is('?') || is('{')) return fail("a quantifier of nothing"), made;
    if (is('^')) return fail("an anchor that is not at an end of its alternative"), made;
    if (accept('[')) {
      ranges(made.start, character_class(), made.end);
    } else if (accept('.')) {  // line ends of JavaScript, whose expressions these are
      ranges(made.start,
             negated({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}, {{0, TextPattern::kLastCharacter}}),
             made.end);
    } else if (accept('\\')) {
      bool shorthand = false;
      ranges(made.start, escaped(&shorthand), made.end);
    } else {
      const char32_t code = text_[at_++];
      ranges(made.start, {{code, code}}, made.end);
    }
    return made;
  }

  // Behind the backslash. `shorthand` is set for sets whose members other engines see differently beyond
  // ASCII.
  Ranges escaped(bool* shorthand) {
    if (done()) return fail("a backslash at the end"), Ranges{};
    const char32_t c = text_[at_++];
    const Ranges printable{{0x20, 0x7E}};
    const Ranges digit{{'0', '9'}}, word{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
        space{{'\t', '\r'}, {' ', ' '}};
    *shorthand = true;
    switch (c) {
      case 'd':
        return digit;
      case 'D':
        return negated(digit, printable);
      case 'w':
        return word;
      case 'W':
        return negated(word, printable);
      case 's':
        return space;
      case 'S':
        return negated(space, printable);
      default:
        *shorthand = false;
    }
    char32_t code = c;
    if (c == 't') code = '\t';
    if (c == 'n') code = '\n';
    if (c == 'r') code = '\r';
    if (c == 'f') code = '\f';
    if (c == 'v') code = '\v';
    if (c == 'x') code = hex(2);
    if (c == 'u') code = hex(4);
    const bool known = std::u32string_view(U"tnrfvxu").find(c) != std::u32string_view::npos;
    if (!known && ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
      fail(fmt::format("'\\{}' is not supported", static_cast<char>(c)));
    return {{code, code}};
  }

  char32_t hex(int digits) {
    char32_t code = 0;
    for (int i = 0; i < digits; ++i) {
      const char32_t c = done() ? 0 : text_[at_++];
      if (c >= '0' && c <= '9')
        code = code * 16 + (c - '0');
      else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        code = code * 16 + ((c | 0x20) - 'a' + 10);
      else
        fail("a number in hexadecimal digits was expected");
    }
    if (code >= 0xD800 && code <= 0xDFFF) fail("half of a surrogate pair");
    return code;
  }

  Ranges character_class() {
    const bool negative = accept('^');
    Ranges all;
    bool ascii = false;
    while (!done() && !is(']')) {
      bool shorthand = false;
      Ranges low = class_member(&shorthand);
      ascii |= shorthand;
      if (is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']' && problem_.empty()) {
        ++at_;
        bool other = false;
        const Ranges high = class_member(&other);
        if (!problem_.empty()) break;
        if (shorthand || other || low[0].first > high[0].first)
          return fail("a range of characters that is none"), Ranges{};
        low = {{low[0].first, high[0].first}};
      }
      all.insert(all.end(), low.begin(), low.end());
    }
    if (!accept(']')) return fail("'[' without ']'"), Ranges{};
    if (!negative) return all;
    return negated(all, ascii ? Ranges{{0x20, 0x7E}} : Ranges{{0, TextPattern::kLastCharacter}});
  }

  Ranges class_member(bool* shorthand) {
    if (done()) return fail("'[' without ']'"), Ranges{{0, 0}};
    if (accept('\\')) {
      if (accept('b')) return {{'\b', '\b'}};
      Ranges out = escaped(shorthand);
      return out.empty() ? Ranges{{0, 0}} : out;
    }
    const char32_t code = text_[at_++];
    return {{code, code}};
  }

  std::vector<char32_t> text_;
  size_t at_ = 0, read_again_ = 0;
  std::string problem_;
  TextPattern pattern_;
};

}  // namespace

Result<TextPattern> TextPattern::regex(std::string_view pattern) {
  return Parser(pattern).parse();
}

}  // namespace lowkey::grammar
