// The values that a chat template computes with: Python's, as far as templates need them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lowkey::coordinator::jinja {

// Thrown inside the template engine only; ChatTemplate turns it into an Error.
struct TemplateError {
  std::string message;
};

// Of one value as a text: what holds the same list many times is much longer than it is large.
inline constexpr size_t kMostText = size_t{32} << 20;

// What rendering may cost. A template comes with a model and is data, not code we trust.
class Budget {
 public:
  Budget(size_t max_steps, size_t max_bytes) : steps_left_(max_steps), bytes_left_(max_bytes) {}
  void step() {
    if (steps_left_-- == 0) throw TemplateError{"takes too many steps"};
  }
  // Every byte of every string made on the way counts, so that memory is bounded too.
  void bytes(size_t count) {
    if (count > bytes_left_) throw TemplateError{"makes too much text"};
    bytes_left_ -= count;
  }

 private:
  size_t steps_left_;
  size_t bytes_left_;
};

class Value;
class Dict;
using List = std::vector<Value>;

struct Arguments;
using Function = std::function<Value(const Arguments&)>;

struct Undefined {
  std::shared_ptr<const std::string> name;  // of what was looked for
};
struct None {};

// Cheap to copy: strings and containers are shared and never change, except namespaces (Python's semantics
// too).
class Value {
 public:
  Value() : state_(None{}) {}
  Value(bool value) : state_(value) {}
  Value(int64_t value) : state_(value) {}
  Value(double value) : state_(value) {}
  Value(std::string text) : state_(std::make_shared<const std::string>(std::move(text))) {}
  Value(List items);  // throws when lists and dicts nest too deep
  Value(Dict dict);
  Value(std::shared_ptr<Dict> names) : state_(std::move(names)), nesting_(1) {}
  Value(Function function) : state_(std::make_shared<const Function>(std::move(function))) {}
  Value(const char*) = delete;  // would become a bool
  static Value undefined(std::string_view name);

  bool is_undefined() const { return std::holds_alternative<Undefined>(state_); }
  bool is_none() const { return std::holds_alternative<None>(state_); }
  bool is_bool() const { return std::holds_alternative<bool>(state_); }
  bool is_int() const { return std::holds_alternative<int64_t>(state_); }
  bool is_float() const { return std::holds_alternative<double>(state_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }

  // Null where the value is of another type.
  const std::string* string() const { return get<const std::string>(); }
  const List* list() const { return get<const List>(); }
  Dict* dict() const { return get<Dict>(); }
  const Function* function() const { return get<const Function>(); }

  bool truth() const;
  // REQUIRES: is_number()
  double as_double() const;
  int64_t as_int() const;  // truth values count as 0 and 1; throws on floats and others
  std::string undefined_message() const;

  const char* type_name() const;  // as Python calls it
  std::string text() const;       // str(value); undefined is empty
  std::string repr() const;
  List items() const;  // what iterating gives; throws where the value cannot be iterated

 private:
  template <class T>
  T* get() const {
    const auto* held = std::get_if<std::shared_ptr<T>>(&state_);
    return held ? held->get() : nullptr;
  }
  void write_repr(std::string& out, int depth) const;
  friend bool equal(const Value& a, const Value& b, Budget& budget, int depth);

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<Dict>, std::shared_ptr<const Function>>
      state_;
  int nesting_ =
      0;  // of lists and dicts, so that no recursion over a value runs deep, its destruction included
};

// Keeps the order of insertion. Keys are strings; small enough in practice for linear search.
class Dict {
 public:
  const Value* find(std::string_view key) const;
  void set(std::string_view key, Value value);
  const std::vector<std::pair<std::string, Value>>& entries() const { return entries_; }
  void clear() { entries_.clear(); }

  bool is_namespace = false;  // the one kind whose entries a template may change

 private:
  std::vector<std::pair<std::string, Value>> entries_;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or called `name`; null where absent.
  const Value* find(size_t index, std::string_view name) const;
};

// Python's ==.
bool equal(const Value& a, const Value& b, Budget& budget, int depth = 0);
// -1, 0, 1; throws where Python would.
int compare(const Value& a, const Value& b);
// Throws where values within values are deeper than any template needs, or their text is longer.
void check_nesting(int depth);
void check_text(const std::string& text);

}  // namespace lowkey::coordinator::jinja
