#include "kvstore/profile/profile.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <span>

#include "base/one_line.h"
#include "base/safetensors/mapped_file.h"
#include "base/safetensors/safetensors_header.h"

namespace lowkey::kvstore {

namespace {

constexpr std::string_view kBudgetPrefix = "budget.";

// One member of VectorProfile as a tensor: `square` is [dim][dim] a vector, else [dim].
struct Member {
  const char* name;
  std::vector<float> VectorProfile::*values;
  bool square;
};
constexpr Member kMembers[] = {{"encode", &VectorProfile::encode, true},
                               {"decode", &VectorProfile::decode, true},
                               {"mean", &VectorProfile::mean, false},
                               {"scale", &VectorProfile::scale, false}};

template <class T>
std::optional<T> parse_number(const std::string& text, int base = 10) {
  T value{};
  const auto end = text.data() + text.size();
  std::from_chars_result result;
  if constexpr (std::is_floating_point_v<T>)
    result = std::from_chars(text.data(), end, value);
  else
    result = std::from_chars(text.data(), end, value, base);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

class Reader {
 public:
  Reader(const std::string& name, std::span<const std::byte> file, SafetensorsHeader header)
      : name_(name), file_(file), header_(std::move(header)) {}

  Result<Profile> read() {
    LOWKEY_TRY(read_metadata());
    const bool orthonormal = find("decode") == nullptr;
    for (const Member& member : kMembers) {
      if (orthonormal && member.values == &VectorProfile::decode) continue;
      LOWKEY_TRY(read_member(member));
    }
    for (VectorProfile& vector : profile_.vectors) {
      if (orthonormal) vector.decode = vector.encode;
      if (!std::ranges::all_of(vector.scale, [](float s) { return s > 0; }))
        return bad("tensor 'scale'", "positive numbers", "one that is not");
    }
    for (const TensorEntry& tensor : header_.tensors)
      if (tensor.name.starts_with(kBudgetPrefix)) LOWKEY_TRY(read_budget(tensor));
    return std::move(profile_);
  }

 private:
  Error bad(const std::string& where, const std::string& expected, const std::string& found) const {
    return Error{Code::kBadInput,
                 fmt::format("{}: {}: expected {}, found {}", name_, where, expected, one_line(found))};
  }

  std::string field(const char* name) const {
    const auto found = header_.metadata.find(name);
    return found == header_.metadata.end() ? "" : found->second;
  }

  Status read_int(const char* name, int low, int high, int& out) const {
    const std::string text = field(name);
    const auto value = parse_number<int>(text);
    if (!value || *value < low || *value > high)
      return bad(fmt::format("metadata '{}'", name), fmt::format("a number from {} to {}", low, high),
                 fmt::format("'{}'", text));
    out = *value;
    return {};
  }

  Status read_metadata() {
    int version = 0;
    if (field("lowkey_profile").empty()) return bad("metadata 'lowkey_profile'", "a profile", "none");
    LOWKEY_TRY(read_int("lowkey_profile", kProfileVersion, kProfileVersion, version));
    LOWKEY_TRY(read_int("num_banks", 1, 65535, profile_.num_banks));
    LOWKEY_TRY(read_int("num_kv_heads", 1, 65535, profile_.num_kv_heads));
    LOWKEY_TRY(read_int("head_dim", 1, kernels::kMaxGroups * kernels::kGroupFeatures, profile_.head_dim));
    LOWKEY_TRY(read_int("join", 1, profile_.num_kv_heads, profile_.join));
    if (profile_.num_kv_heads % profile_.join != 0)
      return bad("metadata 'join'", fmt::format("a divisor of {} KV heads", profile_.num_kv_heads),
                 std::to_string(profile_.join));
    const std::string norm = field("norm"), edge = field("norm_edge"), hash = field("model_fingerprint");
    if (norm != "true" && norm != "false") return bad("metadata 'norm'", "true or false", "'" + norm + "'");
    profile_.norm = norm == "true";
    const auto norm_edge = parse_number<float>(edge);
    if (!norm_edge || !(*norm_edge > 0))
      return bad("metadata 'norm_edge'", "a positive number", "'" + edge + "'");
    profile_.norm_edge = *norm_edge;
    const auto hi = parse_number<uint64_t>(hash.substr(0, 16), 16);
    const auto lo = parse_number<uint64_t>(hash.size() == 32 ? hash.substr(16) : "", 16);
    if (!hi || !lo) return bad("metadata 'model_fingerprint'", "32 hexadecimal digits", "'" + hash + "'");
    profile_.model_fingerprint = {*hi, *lo};
    profile_.basis = field("basis");
    profile_.origin = field("origin");
    if (profile_.basis.empty()) return bad("metadata 'basis'", "a name", "none");
    return {};
  }

  const TensorEntry* find(std::string_view name) const {
    const auto found = std::ranges::find(header_.tensors, name, &TensorEntry::name);
    return found == header_.tensors.end() ? nullptr : &*found;
  }

  Result<std::span<const std::byte>> bytes_of(const TensorEntry& tensor, std::string_view dtype,
                                              std::vector<int64_t> tail) const {
    std::vector<int64_t> shape = {profile_.num_banks, 2, profile_.vectors_per_side()};
    shape.insert(shape.end(), tail.begin(), tail.end());
    const std::string where = fmt::format("tensor '{}'", tensor.name);
    if (tensor.dtype != dtype) return bad(where, std::string(dtype), tensor.dtype);
    if (tensor.shape != shape) return bad(where, "shape " + format_shape(shape), format_shape(tensor.shape));
    return file_.subspan(header_.data_begin + tensor.begin, tensor.end - tensor.begin);
  }

  Status read_member(const Member& member) {
    const std::string where = fmt::format("tensor '{}'", member.name);
    const TensorEntry* tensor = find(member.name);
    if (tensor == nullptr) return bad(where, "one", "none");
    const size_t dim = profile_.dim(), each = member.square ? dim * dim : dim;
    LOWKEY_ASSIGN(bytes, bytes_of(*tensor, "F32",
                                  member.square ? std::vector<int64_t>{profile_.dim(), profile_.dim()}
                                                : std::vector<int64_t>{profile_.dim()}));
    // As many as the file has numbers for: only now are the metadata's counts known to be no fancy.
    profile_.vectors.resize(size_t(profile_.num_banks) * 2 * profile_.vectors_per_side());
    for (size_t v = 0; v < profile_.vectors.size(); ++v) {
      std::vector<float>& values = profile_.vectors[v].*member.values;
      values.resize(each);
      std::memcpy(values.data(), bytes.data() + v * each * sizeof(float), each * sizeof(float));
      if (!std::ranges::all_of(values, [](float x) { return std::isfinite(x); }))
        return bad(where, "finite numbers", fmt::format("others in vector {}", v));
    }
    return {};
  }

  Status read_budget(const TensorEntry& tensor) {
    const int groups = profile_.groups();
    const int64_t found = tensor.shape.empty() ? 0 : tensor.shape.back();
    const int levels = static_cast<int>(std::clamp<int64_t>(found, 1, kernels::kMaxLevels));
    LOWKEY_ASSIGN(bytes, bytes_of(tensor, "U8", {groups, levels}));
    Budget budget{.name = tensor.name.substr(kBudgetPrefix.size()), .levels = levels};
    for (size_t v = 0, at = 0; v < profile_.vectors.size(); ++v) {
      auto& bits = budget.bits.emplace_back(groups, GroupBits{});
      for (GroupBits& group : bits) {
        for (int level = 0; level < levels; ++level) group[level] = static_cast<uint8_t>(bytes[at++]);
        const int total = group[0] + group[1] + group[2];
        if (total > 8 && total != kernels::kFullBits)
          return bad(fmt::format("tensor '{}'", tensor.name),
                     fmt::format("0 to 8 bits or {}", kernels::kFullBits),
                     fmt::format("{} in vector {}", total, v));
      }
    }
    profile_.budgets.push_back(std::move(budget));
    return {};
  }

  const std::string name_;
  const std::span<const std::byte> file_;
  const SafetensorsHeader header_;
  Profile profile_;
};

// Collects tensors behind each other.
class Writer {
 public:
  void add(const std::string& name, const char* dtype, std::vector<int64_t> shape, std::string_view bytes) {
    entries_.push_back({name, dtype, std::move(shape), data_.size(), data_.size() + bytes.size()});
    data_ += bytes;
  }

  Status write(const std::filesystem::path& file, const std::map<std::string, std::string>& metadata) const {
    std::filesystem::path part = file;
    part += ".part";
    std::ofstream out(part, std::ios::binary | std::ios::trunc);
    const std::string header = format_safetensors_header(entries_, metadata);
    out.write(header.data(), std::streamsize(header.size()));
    out.write(data_.data(), std::streamsize(data_.size()));
    out.close();
    std::error_code ec;
    if (out) std::filesystem::rename(part, file, ec);
    if (!out || ec) return Error{Code::kInternal, fmt::format("{}: cannot be written", file.string()), {}};
    return {};
  }

 private:
  std::vector<TensorEntry> entries_;
  std::string data_;
};

}  // namespace

const Budget* Profile::budget(const std::string& name) const {
  const auto found = std::ranges::find(budgets, name, &Budget::name);
  return found == budgets.end() ? nullptr : &*found;
}

Result<Profile> Profile::read(const std::filesystem::path& file) {
  LOWKEY_ASSIGN(map, MappedFile::open(file));
  return parse(map.bytes(), file.string());
}

Result<Profile> Profile::parse(std::span<const std::byte> file, const std::string& name) {
  LOWKEY_ASSIGN(header, parse_safetensors_header(file, name));
  return Reader(name, file, std::move(header)).read();
}

Status Profile::write(const std::filesystem::path& file) const {
  const size_t num_vectors = size_t(num_banks) * 2 * vectors_per_side();
  LOWKEY_CHECK(vectors.size() == num_vectors, "{} vectors, expected {}", vectors.size(), num_vectors);
  const std::vector<int64_t> prefix = {num_banks, 2, vectors_per_side()};
  const auto shape = [&](std::vector<int64_t> tail) {
    tail.insert(tail.begin(), prefix.begin(), prefix.end());
    return tail;
  };
  Writer writer;
  const bool orthonormal =
      std::ranges::all_of(vectors, [](const VectorProfile& v) { return v.decode == v.encode; });
  for (const Member& member : kMembers) {
    if (orthonormal && member.values == &VectorProfile::decode) continue;
    const size_t each = member.square ? size_t(dim()) * dim() : dim();
    std::string bytes;
    for (const VectorProfile& vector : vectors) {
      const std::vector<float>& values = vector.*member.values;
      LOWKEY_CHECK(values.size() == each, "{}: {} numbers, expected {}", member.name, values.size(), each);
      bytes.append(reinterpret_cast<const char*>(values.data()), each * sizeof(float));
    }
    writer.add(member.name, "F32", member.square ? shape({dim(), dim()}) : shape({dim()}), bytes);
  }
  for (const Budget& budget : budgets) {
    LOWKEY_CHECK(budget.bits.size() == num_vectors, "budget {}: {} vectors", budget.name, budget.bits.size());
    std::string bytes;
    for (const auto& vector : budget.bits) {
      LOWKEY_CHECK(int(vector.size()) == groups(), "budget {}: {} groups", budget.name, vector.size());
      for (const GroupBits& group : vector)
        bytes.append(reinterpret_cast<const char*>(group.data()), budget.levels);
    }
    writer.add(std::string(kBudgetPrefix) + budget.name, "U8", shape({groups(), budget.levels}), bytes);
  }
  return writer.write(file, {{"lowkey_profile", std::to_string(kProfileVersion)},
                             {"basis", basis},
                             {"model_fingerprint", model_fingerprint.hex()},
                             {"num_banks", std::to_string(num_banks)},
                             {"num_kv_heads", std::to_string(num_kv_heads)},
                             {"head_dim", std::to_string(head_dim)},
                             {"join", std::to_string(join)},
                             {"norm", norm ? "true" : "false"},
                             {"norm_edge", fmt::format("{}", norm_edge)},
                             {"origin", origin}});
}

}  // namespace lowkey::kvstore
