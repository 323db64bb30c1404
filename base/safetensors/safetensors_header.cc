#include "base/safetensors/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>
#include <cstring>
#include <unordered_set>

namespace lowkey {

namespace json = boost::json;

namespace {

static_assert(std::endian::native == std::endian::little, "weights are read as they lie in the file");

struct DTypeName {
  std::string_view name;
  int bytes;
};
constexpr std::array kDTypes = {
    DTypeName{"F32", 4},  DTypeName{"F16", 2},     DTypeName{"BF16", 2},    DTypeName{"F64", 8},
    DTypeName{"I64", 8},  DTypeName{"I32", 4},     DTypeName{"I16", 2},     DTypeName{"I8", 1},
    DTypeName{"U64", 8},  DTypeName{"U32", 4},     DTypeName{"U16", 2},     DTypeName{"U8", 1},
    DTypeName{"BOOL", 1}, DTypeName{"F8_E4M3", 1}, DTypeName{"F8_E5M2", 1}, DTypeName{"F8_E8M0", 1},
};

constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDimensions = 8;

// Receives the JSON as events: a document model would silently keep one of two tensors of the same name, and
// would take ten times the header's size. The structure is fixed, so the state is the depth and the current
// key.
class HeaderHandler {
 public:
  static constexpr size_t max_object_size = kMaxSafetensorsHeader;
  static constexpr size_t max_array_size = kMaxSafetensorsHeader;
  static constexpr size_t max_key_size = kMaxSafetensorsHeader;
  static constexpr size_t max_string_size = kMaxSafetensorsHeader;

  std::vector<TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  std::string problem;  // first one; parsing stops there

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code& ec) {
    if (depth_ == 2 || in_array_) return refuse(ec, "a plain field", "an object");
    ++depth_;
    fields_ = 0;
    return true;
  }
  bool on_object_end(size_t, json::error_code& ec) {
    if (depth_ == 2 && !metadata_ && fields_ != kAllFields)
      return refuse(ec, "dtype, shape and data_offsets", "a field missing");
    --depth_;
    return true;
  }
  bool on_array_begin(json::error_code& ec) {
    if (depth_ != 2 || metadata_ || in_array_ || (field_ != kShape && field_ != kOffsets))
      return refuse(ec, "the header's structure", "an array");
    in_array_ = true;
    numbers_.clear();
    return true;
  }
  bool on_array_end(size_t, json::error_code& ec) {
    in_array_ = false;
    TensorEntry& tensor = tensors.back();
    if (field_ == kShape) {
      if (numbers_.size() > kMaxDimensions)
        return refuse(ec, fmt::format("a shape of at most {} dimensions", kMaxDimensions),
                      std::to_string(numbers_.size()));
      tensor.shape.assign(numbers_.begin(), numbers_.end());
    } else {
      if (numbers_.size() != 2)
        return refuse(ec, "data_offsets of two numbers", std::to_string(numbers_.size()));
      tensor.begin = numbers_[0];
      tensor.end = numbers_[1];
    }
    return true;
  }
  bool on_key_part(json::string_view part, size_t, json::error_code& ec) { return collect(part, ec); }
  bool on_key(json::string_view part, size_t, json::error_code& ec) {
    if (!collect(part, ec)) return false;
    const std::string key = std::exchange(text_, {});
    if (depth_ == 1) return begin_tensor(key, ec);
    if (metadata_) {
      entry_ = key;
      return true;
    }
    field_ = key == "dtype" ? kDType : key == "shape" ? kShape : key == "data_offsets" ? kOffsets : 0;
    if (field_ == 0)
      return refuse(ec, "dtype, shape or data_offsets", fmt::format("field '{}'", printable(key)));
    if ((fields_ & field_) != 0) return refuse(ec, fmt::format("one '{}'", key), "two");
    fields_ |= field_;
    return true;
  }
  bool on_string_part(json::string_view part, size_t, json::error_code& ec) {
    return collect_value(part, ec);
  }
  bool on_string(json::string_view part, size_t, json::error_code& ec) {
    if (!collect_value(part, ec)) return false;
    std::string value = std::exchange(text_, {});
    if (depth_ == 2 && metadata_) {
      metadata[entry_] = std::move(value);
      return true;
    }
    if (depth_ != 2 || in_array_ || field_ != kDType)
      return refuse(ec, "the header's structure", fmt::format("the string \"{}\"", printable(value)));
    tensors.back().dtype = value;
    return true;
  }
  bool on_uint64(uint64_t value, json::string_view, json::error_code& ec) { return number(value, ec); }
  bool on_int64(int64_t value, json::string_view, json::error_code& ec) {
    if (value < 0) return refuse(ec, "whole numbers from 0", std::to_string(value));
    return number(static_cast<uint64_t>(value), ec);
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_double(double value, json::string_view, json::error_code& ec) {
    return refuse(ec, "whole numbers from 0", fmt::format("{}", value));
  }
  bool on_bool(bool, json::error_code& ec) { return refuse(ec, "the header's structure", "a truth value"); }
  bool on_null(json::error_code& ec) { return refuse(ec, "the header's structure", "null"); }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

  // Control characters would break the one line of an error.
  static std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 80));
    for (char& c : shown)
      if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
    return shown;
  }

 private:
  enum Field : uint8_t { kDType = 1, kShape = 2, kOffsets = 4, kAllFields = 7 };

  bool refuse(json::error_code& ec, std::string_view expected, std::string_view found) {
    const std::string where =
        current_.empty() ? "" : (metadata_ ? "" : "tensor ") + fmt::format("'{}': ", printable(current_));
    problem = fmt::format("{}expected {}, found {}", where, expected, found);
    ec = json::error::exception;  // any error stops the parser; `problem` says which
    return false;
  }
  bool collect(json::string_view part, json::error_code& ec) {
    if (text_.size() + part.size() > kMaxNameBytes)
      return refuse(ec, fmt::format("names of at most {} bytes", kMaxNameBytes), "a longer one");
    text_.append(part.data(), part.size());
    return true;
  }
  bool collect_value(json::string_view part, json::error_code& ec) {
    if (depth_ != 2 || !metadata_) return collect(part, ec);
    text_.append(part.data(), part.size());  // bounded by the header
    return true;
  }
  bool begin_tensor(const std::string& key, json::error_code& ec) {
    metadata_ = key == "__metadata__";
    current_ = key;
    if (!names_.insert(key).second) return refuse(ec, "one entry", "two of the same name");
    if (!metadata_) tensors.push_back(TensorEntry{.name = key});
    fields_ = 0;
    return true;
  }
  bool number(uint64_t value, json::error_code& ec) {
    if (depth_ != 2 || !in_array_)
      return refuse(ec, "the header's structure", fmt::format("number {}", value));
    if (value > static_cast<uint64_t>(INT64_MAX))
      return refuse(ec, "numbers below 2^63", std::to_string(value));
    if (numbers_.size() > kMaxDimensions) return refuse(ec, "a short list", "a longer one");
    numbers_.push_back(value);
    return true;
  }

  std::unordered_set<std::string> names_;
  std::string current_;  // key at depth 1
  std::string entry_;    // key inside the metadata
  std::string text_;
  std::vector<uint64_t> numbers_;
  int depth_ = 0;
  bool metadata_ = false;
  bool in_array_ = false;
  uint8_t field_ = 0;
  uint8_t fields_ = 0;  // of the current tensor
};

Result<SafetensorsHeader> parse_entries(std::string_view text, const std::string& name) {
  const auto bad = [&](std::string_view what) {
    return Error{Code::kBadInput, fmt::format("{}: header: {}", name, what)};
  };
  if (text.empty() || text.front() != '{')
    return bad(fmt::format("expected a JSON object, found {}",
                           text.empty() ? "nothing" : fmt::format("byte 0x{:02x}", uint8_t(text.front()))));
  json::basic_parser<HeaderHandler> parser(json::parse_options{});
  json::error_code ec;
  const size_t used = parser.write_some(false, text.data(), text.size(), ec);
  if (!parser.handler().problem.empty()) return bad(parser.handler().problem);
  if (ec) return bad(fmt::format("expected JSON, found {} at byte {}", ec.message(), used));
  const size_t junk = text.find_first_not_of(std::string_view(" \t\r\n\0", 5), used);
  if (junk != std::string_view::npos)
    return bad(fmt::format("expected spaces after the JSON, found byte 0x{:02x}", uint8_t(text[junk])));
  SafetensorsHeader header;
  header.tensors = std::move(parser.handler().tensors);
  header.metadata = std::move(parser.handler().metadata);
  return header;
}

// Bytes of a tensor from its shape and dtype; shape products are checked against overflow.
Result<uint64_t> expected_bytes(const TensorEntry& tensor, const std::string& where) {
  const auto dtype = std::ranges::find(kDTypes, tensor.dtype, &DTypeName::name);
  if (dtype == kDTypes.end())
    return Error{Code::kBadInput, fmt::format("{}: expected a known dtype, found '{}'", where,
                                              HeaderHandler::printable(tensor.dtype))};
  uint64_t bytes = dtype->bytes;
  for (const int64_t extent : tensor.shape)
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes))
      return Error{Code::kBadInput, fmt::format("{}: expected a size below 2^64 bytes, found shape {}", where,
                                                format_shape(tensor.shape))};
  if (tensor.begin % dtype->bytes != 0)
    return Error{Code::kBadInput, fmt::format("{}: expected data_offsets aligned to {} bytes, found {}",
                                              where, dtype->bytes, tensor.begin)};
  return bytes;
}

}  // namespace

std::string format_shape(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> file, const std::string& name) {
  const auto bad = [&](std::string what) { return Error{Code::kBadInput, name + ": " + what}; };
  uint64_t length = 0;
  if (file.size() < sizeof length)
    return bad(fmt::format("expected at least 8 bytes, found {}", file.size()));
  std::memcpy(&length, file.data(), sizeof length);
  const uint64_t limit = std::min<uint64_t>(file.size() - sizeof length, kMaxSafetensorsHeader);
  if (length > limit)
    return bad(fmt::format("expected a header length of at most {} bytes, found {}", limit, length));

  const char* text = reinterpret_cast<const char*>(file.data()) + sizeof length;
  LOWKEY_ASSIGN(header, parse_entries({text, length}, name));
  header.data_begin = sizeof length + length;
  std::vector<TensorEntry>& tensors = header.tensors;
  // Tensors without elements share their offset with a neighbour: they come first.
  std::ranges::sort(tensors, {}, [](const TensorEntry& t) { return std::pair(t.begin, t.end); });

  const uint64_t data_bytes = file.size() - header.data_begin;
  uint64_t next = 0;
  for (const TensorEntry& tensor : tensors) {
    const std::string where = fmt::format("{}: tensor '{}'", name, HeaderHandler::printable(tensor.name));
    LOWKEY_ASSIGN(bytes, expected_bytes(tensor, where));
    const std::string offsets = fmt::format("[{}, {}]", tensor.begin, tensor.end);
    if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes)
      return Error{Code::kBadInput, fmt::format("{}: expected {} bytes ({} {}), found data_offsets {}", where,
                                                bytes, tensor.dtype, format_shape(tensor.shape), offsets)};
    if (tensor.end > data_bytes)
      return Error{Code::kBadInput, fmt::format("{}: expected data_offsets within {} bytes of data, found {}",
                                                where, data_bytes, offsets)};
    if (tensor.begin != next)
      return Error{Code::kBadInput,
                   fmt::format("{}: expected data_offsets that begin at {} ({}), found {}", where, next,
                               tensor.begin < next ? "overlap" : "gap", offsets)};
    next = tensor.end;
  }
  if (next != data_bytes)
    return bad(fmt::format("expected {} bytes of data after the header, found {}", next, data_bytes));
  // Element alignment also needs the data itself aligned: writers pad the header with spaces to 8 bytes.
  if (!tensors.empty() && header.data_begin % 8 != 0)
    return bad(fmt::format("expected a header padded to 8 bytes, found data at byte {}", header.data_begin));
  return header;
}

std::string format_safetensors_header(std::span<const TensorEntry> tensors,
                                      const std::map<std::string, std::string>& metadata) {
  const auto quoted = [](const std::string& text) { return json::serialize(json::string(text)); };
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata)
      text += fmt::format("{}{}:{}", text.back() == '{' ? "" : ",", quoted(key), quoted(value));
    text += '}';
  }
  for (const TensorEntry& tensor : tensors)
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        text.size() == 1 ? "" : ",", quoted(tensor.name), tensor.dtype,
                        fmt::join(tensor.shape, ","), tensor.begin, tensor.end);
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace lowkey
