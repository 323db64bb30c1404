#include "kernels/page/plane_codes.h"

#include <algorithm>
#include <cstring>

namespace lowkey::kernels {
namespace {

// Where element (token, feature of the group) of a plane is: bits [shift, shift + bits) of a little-endian
// word.
struct Slot {
  size_t word;
  int shift;
};

Slot slot_of(Side side, const Plane& plane, int page_tokens, int token, int feature) {
  const int n = 32 / plane.bits;
  if (side == Side::kKey) {
    return {static_cast<size_t>(feature / n) * page_tokens + token, feature % n * plane.bits};
  }
  return {static_cast<size_t>(token / n) * plane.features + feature, token % n * plane.bits};
}

uint32_t low_bits(int bits) {
  return bits == 32 ? ~0u : (1u << bits) - 1;
}

uint32_t load_word(const std::byte* words, size_t index) {
  uint32_t word;
  std::memcpy(&word, words + 4 * index, 4);
  return word;
}

}  // namespace

int PlaneGroup::bits_of(int levels) const {
  int sum = 0;
  for (const Plane& plane : planes) sum += plane.level < levels ? plane.bits : 0;
  return sum;
}

std::vector<PlaneGroup> groups_of(const PageLayout& layout, const VectorLayout& vector) {
  std::vector<PlaneGroup> groups;
  find_groups(layout, vector, groups);
  return groups;
}

void find_groups(const PageLayout& layout, const VectorLayout& vector, std::vector<PlaneGroup>& groups) {
  groups.clear();
  std::span<const Plane> left(layout.planes.data() + vector.first_plane, vector.num_planes);
  for (int feature = 0; feature < vector.dim; feature += kGroupFeatures) {
    PlaneGroup group{.feature = feature, .features = std::min(kGroupFeatures, vector.dim - feature)};
    size_t count = 0;
    while (count < left.size() && left[count].feature == feature) group.bits += left[count++].bits;
    group.planes = left.first(count);
    left = left.subspan(count);
    groups.push_back(group);
  }
}

void write_codes(const PageLayout& layout, const VectorLayout& vector, const PlaneGroup& group,
                 const uint32_t* codes, std::byte* const* slabs) {
  int left = group.bits;
  for (const Plane& plane : group.planes) {
    left -= plane.bits;
    std::byte* words = slabs[plane.level] + plane.offset;
    std::memset(words, 0, plane.bytes);  // what no element fills is 0
    for (int t = 0; t < layout.page_tokens; ++t) {
      for (int f = 0; f < plane.features; ++f) {
        const uint32_t code = codes[static_cast<size_t>(t) * vector.dim + plane.feature + f];
        const Slot slot = slot_of(vector.side, plane, layout.page_tokens, t, f);
        const uint32_t word = load_word(words, slot.word) | ((code >> left) & low_bits(plane.bits))
                                                                << slot.shift;
        std::memcpy(words + 4 * slot.word, &word, 4);
      }
    }
  }
}

void read_codes(const PageLayout& layout, const VectorLayout& vector, const PlaneGroup& group,
                std::byte* const* slabs, int levels, uint32_t* codes) {
  for (int t = 0; t < layout.page_tokens; ++t) {
    std::fill_n(codes + static_cast<size_t>(t) * vector.dim + group.feature, group.features, 0u);
  }
  for (const Plane& plane : group.planes) {
    if (plane.level >= levels) continue;
    const std::byte* words = slabs[plane.level] + plane.offset;
    for (int t = 0; t < layout.page_tokens; ++t) {
      for (int f = 0; f < plane.features; ++f) {
        const Slot slot = slot_of(vector.side, plane, layout.page_tokens, t, f);
        uint32_t& code = codes[static_cast<size_t>(t) * vector.dim + plane.feature + f];
        const uint32_t part = (load_word(words, slot.word) >> slot.shift) & low_bits(plane.bits);
        // A full plane has all of a word at most: nothing is shifted out.
        code = (plane.bits == 32 ? 0 : code << plane.bits) | part;
      }
    }
  }
}

}  // namespace lowkey::kernels
