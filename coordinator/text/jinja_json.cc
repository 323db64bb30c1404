#include "coordinator/text/jinja_json.h"

#include <spdlog/fmt/fmt.h>

#include <cstdint>
#include <string_view>
#include <utility>

namespace lowkey::coordinator::jinja {
namespace {

void write_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<int>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

class JsonWriter {
 public:
  explicit JsonWriter(int indent) : indent_(indent) {}
  std::string out;

  void write(const Value& value, int depth) {
    check_nesting(depth);
    check_text(out);
    if (const auto* text = value.string()) {
      write_json_string(out, *text);
    } else if (const auto* list = value.list()) {
      open('[');
      for (size_t i = 0; i < list->size(); ++i) {
        separate(i == 0, depth + 1);
        write((*list)[i], depth + 1);
      }
      close(']', list->empty(), depth);
    } else if (const auto* dict = value.dict()) {
      open('{');
      bool first = true;
      for (const auto& [key, item] : dict->entries()) {
        separate(first, depth + 1);
        first = false;
        write_json_string(out, key);
        out += ": ";
        write(item, depth + 1);
      }
      close('}', first, depth);
    } else if (value.is_undefined() || value.function()) {
      throw TemplateError{fmt::format("tojson: a value of type {} is not JSON", value.type_name())};
    } else if (value.is_none()) {
      out += "null";
    } else if (value.is_bool()) {
      out += value.truth() ? "true" : "false";
    } else {
      out += value.text();
    }
  }

 private:
  void open(char bracket) { out += bracket; }
  void separate(bool first, int depth) {
    if (!first) out += indent_ < 0 ? ", " : ",";
    new_line(depth);
  }
  void close(char bracket, bool empty, int depth) {
    if (!empty) new_line(depth);
    out += bracket;
  }
  void new_line(int depth) {
    if (indent_ < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent_) * static_cast<size_t>(depth), ' ');
  }

  int indent_;
};

}  // namespace

std::string to_json(const Value& value, int indent) {
  JsonWriter writer(indent);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace lowkey::coordinator::jinja
