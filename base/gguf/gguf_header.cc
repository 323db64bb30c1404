#include "base/gguf/gguf_header.h"

#include <spdlog/fmt/fmt.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

namespace lowkey {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kDefaultAlignment = 32, kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDims = 4;                    // of the format
constexpr uint64_t kMaxKeyBytes = 65535;            // of the format
constexpr int64_t kMaxElements = int64_t{1} << 48;  // no product of extents overflows below it

constexpr std::array<std::pair<GgufType, GgufBlock>, 8> kBlocks = {{{GgufType::kF32, {"F32", 1, 4}},
                                                                    {GgufType::kF16, {"F16", 1, 2}},
                                                                    {GgufType::kBf16, {"BF16", 1, 2}},
                                                                    {GgufType::kQ8_0, {"Q8_0", 32, 34}},
                                                                    {GgufType::kQ4_0, {"Q4_0", 32, 18}},
                                                                    {GgufType::kQ5_0, {"Q5_0", 32, 22}},
                                                                    {GgufType::kQ4_K, {"Q4_K", 256, 144}},
                                                                    {GgufType::kQ6_K, {"Q6_K", 256, 210}}}};

enum class ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kText,
  kArray,
  kU64,
  kI64,
  kF64
};

// Bytes of a value, at least.
size_t least_bytes(ValueType type) {
  constexpr std::array<uint8_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
}

// Reads from front to back; the first thing found wrong is kept, and everything after it is zero.
class Parser {
 public:
  Parser(std::span<const std::byte> file, const std::string& name) : file_(file), name_(name) {}

  Result<GgufHeader> parse();

 private:
  void fail(std::string_view where, std::string_view expected, std::string_view found) {
    if (status_.ok())
      status_ =
          Error{Code::kBadInput, fmt::format("{}: {}: expected {}, found {}", name_, where, expected, found)};
  }
  bool ok() const { return status_.ok(); }
  uint64_t left() const { return file_.size() - at_; }

  template <class T>
  T number(std::string_view where) {
    T value{};
    if (!ok()) return value;
    if (left() < sizeof(T)) {
      fail(where, fmt::format("{} bytes more", sizeof(T)), fmt::format("{}", left()));
      return value;
    }
    std::memcpy(&value, file_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string text(std::string_view where, uint64_t most) {
    const auto bytes = number<uint64_t>(where);
    if (!ok()) return {};
    if (bytes > std::min(most, left())) {
      fail(where, fmt::format("a text of at most {} bytes", std::min(most, left())),
           fmt::format("{}", bytes));
      return {};
    }
    std::string value(reinterpret_cast<const char*>(file_.data() + at_), bytes);
    at_ += bytes;
    return value;
  }
  ValueType value_type(std::string_view where) {
    const auto type = number<uint32_t>(where);
    if (type > static_cast<uint32_t>(ValueType::kF64))
      fail(where, "a value type from 0 to 12", fmt::format("{}", type));
    return ok() ? static_cast<ValueType>(type) : ValueType::kU8;
  }
  int64_t integer(ValueType type, std::string_view where);
  double real(ValueType type, std::string_view where) {
    return type == ValueType::kF32 ? double{number<float>(where)} : number<double>(where);
  }
  static bool is_integer(ValueType type) {
    return type <= ValueType::kI32 || type == ValueType::kU64 || type == ValueType::kI64 ||
           type == ValueType::kBool;
  }
  GgufValue value(std::string_view where);
  GgufValue array(std::string_view where);
  template <class T, class Read>
  std::vector<T> list(uint64_t count, const Read& read) {
    std::vector<T> values;
    values.reserve(count);
    for (uint64_t i = 0; i < count && ok(); ++i) values.push_back(read());
    return values;
  }
  void read_metadata(uint64_t count, GgufHeader& header);
  void read_tensor(GgufHeader& header);
  void place_tensors(GgufHeader& header);

  std::span<const std::byte> file_;
  const std::string& name_;
  uint64_t at_ = 0;
  Status status_;
};

int64_t Parser::integer(ValueType type, std::string_view where) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kBool:
      return number<uint8_t>(where);
    case ValueType::kI8:
      return number<int8_t>(where);
    case ValueType::kU16:
      return number<uint16_t>(where);
    case ValueType::kI16:
      return number<int16_t>(where);
    case ValueType::kU32:
      return number<uint32_t>(where);
    case ValueType::kI32:
      return number<int32_t>(where);
    default: {
      const auto value = number<int64_t>(where);
      if (type == ValueType::kU64 && value < 0) fail(where, "at most 63 bits", "64");
      return value;
    }
  }
}

GgufValue Parser::value(std::string_view where) {
  const ValueType type = value_type(where);
  if (type == ValueType::kArray) return array(where);
  if (type == ValueType::kText) return text(where, std::numeric_limits<uint64_t>::max());
  if (type == ValueType::kBool) return integer(type, where) != 0;
  if (is_integer(type)) return integer(type, where);
  return real(type, where);
}

GgufValue Parser::array(std::string_view where) {
  const ValueType type = value_type(where);
  const auto count = number<uint64_t>(where);
  if (!ok()) return false;
  if (type == ValueType::kArray) {
    fail(where, "an array of values", "an array of arrays");
    return false;
  }
  if (count > left() / least_bytes(type)) {
    fail(where, fmt::format("an array of at most {} values", left() / least_bytes(type)),
         fmt::format("{}", count));
    return false;
  }
  if (type == ValueType::kText) {
    return list<std::string>(count, [&] { return text(where, std::numeric_limits<uint64_t>::max()); });
  }
  if (is_integer(type)) return list<int64_t>(count, [&] { return integer(type, where); });
  return list<double>(count, [&] { return real(type, where); });
}

void Parser::read_metadata(uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count && ok(); ++i) {
    const std::string key = text("metadata", kMaxKeyBytes);
    GgufValue found = value(fmt::format("'{}'", key));
    if (ok() && !header.metadata.emplace(key, std::move(found)).second)
      fail(fmt::format("'{}'", key), "one value", "two");
  }
}

// Everything but `end`; `begin` from the start of the data.
void Parser::read_tensor(GgufHeader& header) {
  GgufTensor tensor{.name = text("tensors", kMaxKeyBytes)};
  const std::string where = fmt::format("tensor '{}'", tensor.name);
  const auto dims = number<uint32_t>(where);
  if (ok() && (dims == 0 || dims > kMaxDims)) fail(where, "1 to 4 dimensions", fmt::format("{}", dims));
  int64_t elements = 1;
  for (uint32_t i = 0; i < dims && ok(); ++i) {
    const auto extent = number<uint64_t>(where);
    if (extent == 0 || extent > uint64_t(kMaxElements / elements))
      return fail(where, fmt::format("1 to {} elements", kMaxElements),
                  fmt::format("an extent of {}", extent));
    elements *= static_cast<int64_t>(extent);
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));
  }
  tensor.type = static_cast<GgufType>(number<uint32_t>(where));
  tensor.begin = number<uint64_t>(where);
  if (!ok()) return;
  const GgufBlock* block = gguf_block(tensor.type);
  if (block == nullptr)
    return fail(where, "a type out of [F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K, Q6_K]",
                fmt::format("type {}", static_cast<uint32_t>(tensor.type)));
  if (tensor.shape.back() % block->elements != 0)
    return fail(where, fmt::format("rows of a multiple of {} elements ({})", block->elements, block->name),
                fmt::format("{}", tensor.shape.back()));
  tensor.end = tensor.begin + static_cast<uint64_t>(elements / block->elements) * block->bytes;
  if (tensor.end < tensor.begin)
    return fail(where, "an offset inside the file", fmt::format("{}", tensor.begin));
  if (!header.tensors.emplace(tensor.name, tensor).second) fail(where, "one of that name", "two");
}

void Parser::place_tensors(GgufHeader& header) {
  const int64_t alignment = header.integer("general.alignment").value_or(kDefaultAlignment);
  if (alignment < 8 || alignment > int64_t{kMaxAlignment} || alignment % 8 != 0)
    return fail("'general.alignment'", fmt::format("a multiple of 8 up to {}", kMaxAlignment),
                fmt::format("{}", alignment));
  const uint64_t data = (at_ + alignment - 1) / alignment * alignment;
  for (auto& [name, tensor] : header.tensors) {
    const std::string where = fmt::format("tensor '{}'", name);
    if (tensor.begin % alignment != 0)
      return fail(where, fmt::format("an offset that is a multiple of {}", alignment),
                  fmt::format("{}", tensor.begin));
    if (data > file_.size() || tensor.end > file_.size() - data)
      return fail(where, fmt::format("bytes up to {} of the data", tensor.end),
                  fmt::format("{}", data > file_.size() ? 0 : file_.size() - data));
    tensor.begin += data;
    tensor.end += data;
  }
}

Result<GgufHeader> Parser::parse() {
  GgufHeader header;
  const auto magic = number<uint32_t>("header");
  if (ok() && magic != 0x46554747) fail("header", "'GGUF'", fmt::format("{:#010x}", magic));
  const auto version = number<uint32_t>("header");
  if (ok() && version != 2 && version != 3) fail("header", "version 2 or 3", fmt::format("{}", version));
  const auto tensors = number<uint64_t>("header"), pairs = number<uint64_t>("header");
  read_metadata(pairs, header);
  for (uint64_t i = 0; i < tensors && ok(); ++i) read_tensor(header);
  if (ok()) place_tensors(header);
  if (!ok()) return status_.error();
  return header;
}

}  // namespace

const GgufBlock* gguf_block(GgufType type) {
  for (const auto& [known, block] : kBlocks) {
    if (known == type) return &block;
  }
  return nullptr;
}

namespace {

template <class T>
const T* value_of(const GgufHeader& header, const std::string& key) {
  const auto found = header.metadata.find(key);
  return found == header.metadata.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

std::optional<int64_t> GgufHeader::integer(const std::string& key) const {
  const auto* value = value_of<int64_t>(*this, key);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

std::optional<double> GgufHeader::number(const std::string& key) const {
  if (const auto value = integer(key)) return static_cast<double>(*value);
  const auto* value = value_of<double>(*this, key);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

std::optional<bool> GgufHeader::flag(const std::string& key) const {
  const auto* value = value_of<bool>(*this, key);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

const std::string* GgufHeader::text(const std::string& key) const {
  return value_of<std::string>(*this, key);
}

const std::vector<std::string>* GgufHeader::texts(const std::string& key) const {
  return value_of<std::vector<std::string>>(*this, key);
}

const std::vector<int64_t>* GgufHeader::integers(const std::string& key) const {
  return value_of<std::vector<int64_t>>(*this, key);
}

const std::vector<double>* GgufHeader::numbers(const std::string& key) const {
  return value_of<std::vector<double>>(*this, key);
}

Result<GgufHeader> parse_gguf_header(std::span<const std::byte> file, const std::string& name) {
  return Parser(file, name).parse();
}

}  // namespace lowkey
