#include "transport/ucx/endpoint_info.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>

#include "base/check.h"

namespace lowkey::transport {
namespace {

constexpr std::array<std::string_view, 6> kSharedMemory = {"posix", "sysv", "cma", "knem", "xpmem", "self"};
constexpr std::array<std::string_view, 3> kRdmaPrefixes = {"rc_", "ud_", "dc_"};
constexpr std::string_view kBlank = " \t";

// "name[7]" at the start of `text`: its number, and `text` moves behind it.
std::optional<int> take_index(std::string_view& text, std::string_view name) {
  if (!text.starts_with(name)) return std::nullopt;
  const std::string_view rest = text.substr(name.size());
  int index = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
  if (error != std::errc() || end == rest.data() + rest.size() || *end != ']') return std::nullopt;
  text = rest.substr(end + 1 - rest.data());
  return index;
}

void skip(std::string_view& text, std::string_view characters) {
  const size_t at = text.find_first_not_of(characters);
  text.remove_prefix(at == text.npos ? text.size() : at);
}

std::string_view take_word(std::string_view& text) {
  skip(text, kBlank);
  const std::string_view word = text.substr(0, text.find_first_of(kBlank));
  text.remove_prefix(word.size());
  return word;
}

bool is_number(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

// ":  1:tcp/eth0.0 md[0]           -> md[0]/tcp/sysdev[255] am am_bw#0": resource, name, device and path
// number.
std::optional<Lane> parse_lane(std::string_view text) {
  skip(text, ": \t");
  const size_t colon = text.find(':');
  if (colon == text.npos || !is_number(text.substr(0, colon))) return std::nullopt;
  text.remove_prefix(colon + 1);
  const std::string_view resource = take_word(text);
  const size_t slash = resource.find('/'), dot = resource.rfind('.');
  if (slash == resource.npos || slash == 0 || dot == resource.npos || dot < slash + 2) return std::nullopt;
  Lane lane;
  lane.transport = resource.substr(0, slash);
  lane.device = resource.substr(slash + 1, dot - slash - 1);
  while (!text.empty()) {
    const std::string_view use = take_word(text);
    if (use == "am") lane.messages = true;
  }
  return lane;
}

}  // namespace

std::vector<Lane> parse_endpoint_info(std::string_view text) {
  std::map<int, Lane> lanes;
  while (!text.empty()) {
    const size_t length = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    skip(line, "# \t");
    if (const auto lane_index = take_index(line, "lane[")) {
      if (auto lane = parse_lane(line)) lanes.insert_or_assign(*lane_index, std::move(*lane));
      continue;
    }
    // "put[0]: 0..<short>..(inf)": the thresholds of a lane that can do it by itself.
    for (const std::string_view operation : {"put[", "get["}) {
      const auto index = take_index(line, operation);
      if (index && lanes.contains(*index)) lanes[*index].one_sided = true;
    }
  }
  std::vector<Lane> in_order;
  for (auto& [index, lane] : lanes) in_order.push_back(std::move(lane));
  return in_order;
}

std::vector<Lane> transfer_lanes(const std::vector<Lane>& lanes) {
  std::vector<Lane> found;
  std::ranges::copy_if(lanes, std::back_inserter(found), &Lane::one_sided);
  if (found.empty()) std::ranges::copy_if(lanes, std::back_inserter(found), &Lane::messages);
  return found;
}

Path path_of(const std::vector<Lane>& lanes) {
  LOWKEY_CHECK(!lanes.empty());
  const auto shared = [](const Lane& lane) {
    return std::ranges::find(kSharedMemory, lane.transport) != kSharedMemory.end();
  };
  const auto rdma = [](const Lane& lane) {
    return std::ranges::any_of(kRdmaPrefixes,
                               [&](auto prefix) { return lane.transport.starts_with(prefix); });
  };
  if (std::ranges::all_of(lanes, shared)) return Path::kShm;
  return std::ranges::all_of(lanes, rdma) ? Path::kRdma : Path::kTcp;
}

std::string device_names(const std::vector<Lane>& lanes) {
  std::string names;
  for (const Lane& lane : lanes) {
    const std::string name = lane.transport + "/" + lane.device;
    if (names.find(name) != names.npos) continue;
    names += (names.empty() ? "" : ",") + name;
  }
  return names.empty() ? "unknown" : names;
}

}  // namespace lowkey::transport
