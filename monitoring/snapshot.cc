#include "monitoring/snapshot.h"

#include <bit>
#include <cstring>
#include <set>

#include "base/hash128.h"

namespace lowkey::monitoring {
namespace {

constexpr std::string_view kMagic = "LKM1";
constexpr size_t kMaxLabelBytes = 256;

uint64_t catalog_fingerprint() {
  static const uint64_t fingerprint = [] {
    std::string text;
    for (const auto& metric : catalog()) {
      text += metric.name;
      text += static_cast<char>('0' + static_cast<int>(metric.type));
      text += metric.labels;
      for (double bound : metric.buckets) text.append(reinterpret_cast<const char*>(&bound), sizeof(bound));
    }
    return hash128(text).lo;
  }();
  return fingerprint;
}

// Length of the UTF-8 character at the start of `text`, or 0 (RFC 3629: no overlong forms, no surrogates).
size_t utf8_length(std::string_view text) {
  auto at = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  auto tail = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  unsigned c = at(0);
  if (c < 0x80) return 1;
  if (c >= 0xC2 && c < 0xE0) return tail(1) ? 2 : 0;
  if (c >= 0xE0 && c < 0xF0) {
    if (!tail(1) || !tail(2) || (c == 0xE0 && at(1) < 0xA0) || (c == 0xED && at(1) >= 0xA0)) return 0;
    return 3;
  }
  if (c >= 0xF0 && c < 0xF5) {
    if (!tail(1) || !tail(2) || !tail(3) || (c == 0xF0 && at(1) < 0x90) || (c == 0xF4 && at(1) >= 0x90))
      return 0;
    return 4;
  }
  return 0;
}

// A name for a constant label that no metric of the catalog uses itself.
bool is_constant_label(std::string_view name) {
  static const auto taken = [] {
    std::set<std::string_view> names{"", "le"};
    for (const auto& metric : catalog())
      for (const auto& label : label_specs(metric)) names.insert(label.name);
    return names;
  }();
  if (taken.contains(name)) return false;
  for (char c : name)
    if (!(c == '_' || (c >= 'a' && c <= 'z'))) return false;
  return true;
}

class Writer {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::endian::native == std::endian::little);
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void text(std::string_view value) {
    number(static_cast<uint16_t>(value.size()));
    out_ += value;
  }
  void raw(std::string_view value) { out_ += value; }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads past the end give zeros and set failed().
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  T number() {
    T value{};
    auto part = raw(sizeof(T));
    if (part.size() == sizeof(T)) std::memcpy(&value, part.data(), sizeof(T));
    return value;
  }
  std::string text() {
    auto part = raw(number<uint16_t>());
    if (!is_label_text(part)) failed_ = true;
    return std::string(part);
  }
  std::string_view raw(size_t size) {
    if (failed_ || size > bytes_.size()) {
      failed_ = true;
      return {};
    }
    auto part = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return part;
  }
  bool failed() const { return failed_; }
  size_t left() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
  bool failed_ = false;
};

Error bad(const std::string& what) {
  return Error{Code::kInvalidArgument, "metrics snapshot: " + what, ""};
}

Result<Series> read_series(Reader& in, const MetricSpec& metric, size_t labels) {
  Series series;
  for (size_t i = 0; i < labels; ++i) series.label_values.push_back(in.text());
  series.value = in.number<double>();
  if (metric.type == MetricType::kHistogram) {
    uint64_t previous = 0;
    for (size_t i = 0; i <= metric.buckets.size(); ++i) {
      auto count = in.number<uint64_t>();
      if (!in.failed() && count < previous)
        return bad("buckets of " + std::string(metric.name) + " decrease");
      series.buckets.push_back(previous = count);
    }
  }
  if (in.failed()) return bad("truncated or not UTF-8 in " + std::string(metric.name));
  return series;
}

Result<Family> read_family(Reader& in, int previous) {
  Family family;
  int index = in.number<uint16_t>();
  auto count = in.number<uint32_t>();
  if (in.failed()) return bad("truncated");
  if (index <= previous || index >= static_cast<int>(catalog().size()))
    return bad(fmt::format("metric {} after {} of {}", index, previous, catalog().size()));
  family.metric = static_cast<Metric>(index);
  const auto& metric = spec(family.metric);
  size_t labels = label_specs(metric).size();
  size_t least = labels * sizeof(uint16_t) + sizeof(double);  // bytes of one series, so a count cannot lie
  if (count > in.left() / least) return bad(fmt::format("{} series in {} bytes", count, in.left()));
  for (uint32_t i = 0; i < count; ++i) {
    LOWKEY_ASSIGN(series, read_series(in, metric, labels));
    family.series.push_back(std::move(series));
  }
  return family;
}

}  // namespace

std::string label_text(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    size_t size = utf8_length(text);
    if (result.size() + std::max<size_t>(size, 1) > kMaxLabelBytes) break;
    if (size > 0)
      result += text.substr(0, size);
    else
      result += '?';
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return result;
}

bool is_label_text(std::string_view text) {
  return text.size() <= kMaxLabelBytes && label_text(text) == text;
}

std::string encode(const Snapshot& snapshot) {
  Writer out;
  out.raw(kMagic);
  out.number(catalog_fingerprint());
  out.number(static_cast<uint8_t>(snapshot.constant_labels.size()));
  for (const auto& [name, value] : snapshot.constant_labels) {
    out.text(name);
    out.text(value);
  }
  out.number(static_cast<uint16_t>(snapshot.families.size()));
  for (const auto& family : snapshot.families) {
    out.number(static_cast<uint16_t>(family.metric));
    out.number(static_cast<uint32_t>(family.series.size()));
    for (const auto& series : family.series) {
      for (const auto& value : series.label_values) out.text(value);
      out.number(series.value);
      for (uint64_t count : series.buckets) out.number(count);
    }
  }
  return out.take();
}

Result<Snapshot> decode(std::string_view bytes) {
  Reader in(bytes);
  if (in.raw(kMagic.size()) != kMagic) return bad("does not begin with " + std::string(kMagic));
  if (in.number<uint64_t>() != catalog_fingerprint())
    return bad("of another catalog (another version of lowkey?)");
  Snapshot snapshot;
  for (int left = in.number<uint8_t>(); left > 0; --left) {
    auto name = in.text();
    if (!is_constant_label(name)) return bad("bad name of a constant label");
    if (!snapshot.constant_labels.emplace(name, in.text()).second) return bad("label " + name + " twice");
  }
  int previous = -1;
  for (int left = in.number<uint16_t>(); left > 0; --left) {
    LOWKEY_ASSIGN(family, read_family(in, previous));
    previous = static_cast<int>(family.metric);
    snapshot.families.push_back(std::move(family));
  }
  if (in.failed()) return bad("truncated");
  if (in.left() > 0) return bad(fmt::format("{} bytes too many", in.left()));
  return snapshot;
}

}  // namespace lowkey::monitoring
