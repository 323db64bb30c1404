#include "kernels/cuda/layout_tables.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/device_image.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels::cuda {
namespace {

std::vector<float> transposed(const float* rows, int num_rows, int num_cols) {
  std::vector<float> result(static_cast<size_t>(num_rows) * num_cols);
  for (int r = 0; r < num_rows; ++r)
    for (int c = 0; c < num_cols; ++c)
      result[static_cast<size_t>(c) * num_rows + r] = rows[static_cast<size_t>(r) * num_cols + c];
  return result;
}

// A map as operands of products (prefill_tile.h has the order): chunks [tile of 8 columns][part of 32
// k][lane] of bf16, then of what bf16 leaves. weight(column in the tile, tile, k in the part, part).
template <class Weight>
std::vector<uint4> operands(int tiles, int parts, const Weight& weight) {
  std::vector<uint4> chunks;
  chunks.reserve(size_t(tiles) * parts * 32 * 2);
  for (int i = 0; i < tiles * parts * 32; ++i) {
    uint32_t words[2][4] = {};
    for (int k = 0; k < 8; ++k) {
      const int lane = i % 32, part = i / 32 % parts, tile = i / 32 / parts;
      const float x = weight(lane / 4, tile, lane % 4, k, part);
      const uint16_t high = f32_to_bf16(x), low = f32_to_bf16(x - bf16_to_f32(high));
      words[0][k / 2] |= uint32_t{high} << 16 * (k % 2);
      words[1][k / 2] |= uint32_t{low} << 16 * (k % 2);
    }
    for (const auto& w : words) chunks.push_back({w[0], w[1], w[2], w[3]});
  }
  return chunks;
}

// Queries times decode^T, in the order in which prefill_attention.cu has features of queries.
std::vector<uint4> query_operands(const float* decode, int dim, int input) {
  return operands(map_parts(dim) * 4, map_parts(input), [&](int n, int tile, int quarter, int k, int part) {
    const int feature = 8 * (4 * (tile / 4) + n / 2) + 2 * (tile % 4) + n % 2;
    const int from = 8 * (4 * part + quarter) + k;
    return feature < dim && from < input ? decode[size_t(feature) * input + from] : 0.0f;
  });
}
// Features times decode, both in their natural order.
std::vector<uint4> value_operands(const float* decode, int dim, int input) {
  return operands(input / 8, map_parts(dim), [&](int n, int tile, int quarter, int k, int part) {
    const int feature = 8 * (4 * part + k / 2) + 2 * quarter + k % 2;
    return feature < dim ? decode[size_t(feature) * input + 8 * tile + n] : 0.0f;
  });
}

// Planes and groups of one vector.
void list_planes(const PageLayout& layout, const VectorLayout& vector, std::vector<DevicePlane>& planes,
                 std::vector<DeviceGroup>& groups) {
  const Plane* source = layout.planes.data() + vector.first_plane;
  int next = 0;
  for (int feature = 0; feature < vector.dim; feature += kGroupFeatures) {
    DeviceGroup group{.first_plane = static_cast<uint16_t>(next)};
    for (; next < vector.num_planes && source[next].feature == feature; ++next) {
      ++group.num_planes;
      group.bits += source[next].bits;
    }
    int left = group.bits;
    for (int i = 0; i < group.num_planes; ++i) {
      const Plane& plane = source[group.first_plane + i];
      left -= plane.bits;
      planes.push_back({plane, static_cast<uint8_t>(left), group.bits});
    }
    groups.push_back(group);
  }
}

// Adds one vector's tables; its DeviceVector is at `at`.
void add_vector(const PageLayout& layout, const VectorLayout& vector, size_t at, DeviceImage& image) {
  std::vector<DevicePlane> planes;
  std::vector<DeviceGroup> groups;
  list_planes(layout, vector, planes, groups);
  const int dim = vector.dim, input = vector.input_dim;
  const size_t cells = static_cast<size_t>(dim) * input;
  const auto point = [&](size_t field, const auto& values) { image.point(at + field, image.add(values)); };
  const auto numbers = [&](size_t field, int32_t index, size_t count) {
    if (const float* from = layout.numbers_at(index)) point(field, std::vector<float>(from, from + count));
  };
  const auto turned = [&](size_t field, int32_t index) {
    if (const float* from = layout.numbers_at(index)) point(field, transposed(from, dim, input));
  };
  point(offsetof(DeviceVector, planes), planes);
  point(offsetof(DeviceVector, groups), groups);
  turned(offsetof(DeviceVector, encode_t), vector.encode);
  numbers(offsetof(DeviceVector, decode), vector.decode, cells);
  turned(offsetof(DeviceVector, decode_t), vector.decode);
  const float* map = layout.numbers_at(vector.decode);
  if (map != nullptr && layout.dtype == DType::kBf16 && vector.num_heads == 1 &&
      input % kGroupFeatures == 0) {
    if (vector.side == Side::kKey) {
      point(offsetof(DeviceVector, query_map), query_operands(map, dim, input));
    } else {
      point(offsetof(DeviceVector, value_map), value_operands(map, dim, input));
    }
  }
  numbers(offsetof(DeviceVector, mean), vector.mean, input);
  numbers(offsetof(DeviceVector, scale), vector.scale, dim);
}

// Plans of all heads at all levels; the bank has a fast kernel when all of them have the same.
FastBank plan_bank(const PageLayout& layout, int bank, std::vector<FastPlan>& plans) {
  FastBank result;
  bool possible = layout.dtype == DType::kBf16, narrow = true;
  for (int head = 0; head < layout.num_kv_heads; ++head) {
    for (int levels = 1; levels <= layout.num_levels; ++levels) {
      const auto plan = make_fast_plan(layout, layout.vector(bank, Side::kKey, head),
                                       layout.vector(bank, Side::kValue, head), levels);
      plans.push_back(plan.value_or(FastPlan{}));
      for (const CodeForm form : plans.back().key.forms)
        narrow = narrow && form != CodeForm::kBytes && form != CodeForm::kFull;
      possible = possible && plan.has_value();
      if (!possible || plan->kind == FastKind::kNone) continue;
      if (result.kind == FastKind::kNone) result.kind = plan->kind;
      if (result.kind != plan->kind) {
        possible = result.kind != FastKind::kFull && plan->kind != FastKind::kFull;
        result.kind = FastKind::kMixed;
      }
      result.max_groups = std::max<int>({result.max_groups, plan->key.num_groups, plan->value.num_groups});
      result.stage_bytes = std::max(result.stage_bytes, plan->stage_bytes);
    }
  }
  if (!possible) result.kind = FastKind::kNone;
  result.narrow_keys = narrow;
  return result;
}

}  // namespace

Result<LayoutTables> LayoutTables::create(const PageLayout& layout, cudaStream_t stream) {
  DeviceImage image;
  LayoutTables tables;
  const size_t header =
      image.add(std::vector<DeviceLayout>{{layout.page_tokens, layout.sink_tokens, layout.num_levels,
                                           layout.num_kv_heads, layout.head_dim, layout.join, layout.dtype}});
  std::vector<DeviceVector> vectors;
  for (const VectorLayout& vector : layout.vectors) vectors.push_back({vector});
  const size_t first = image.add(vectors);
  for (size_t i = 0; i < layout.vectors.size(); ++i) {
    const VectorLayout& vector = layout.vectors[i];
    add_vector(layout, vector, first + i * sizeof(DeviceVector), image);
    tables.max_dim_ = std::max<int>({tables.max_dim_, vector.dim, vector.input_dim});
  }
  image.point(header + offsetof(DeviceLayout, vectors), first);
  image.point(header + offsetof(DeviceLayout, rows), image.add(layout.rows));
  image.point(header + offsetof(DeviceLayout, tables),
              image.add(std::vector<EmbeddedTables>{embedded_tables()}));

  std::vector<FastPlan> plans;
  for (int bank = 0; bank < layout.num_banks; ++bank) tables.fast_.push_back(plan_bank(layout, bank, plans));
  const size_t fast = image.add(plans);

  LOWKEY_ASSIGN(buffer, DeviceBuffer::create(image.size()));
  LOWKEY_ASSIGN(staging, PinnedBuffer::create(image.size()));
  image.write(staging.data(), buffer.data());
  LOWKEY_CUDA_TRY(
      cudaMemcpyAsync(buffer.data(), staging.data(), image.size(), cudaMemcpyHostToDevice, stream));
  LOWKEY_CUDA_TRY(cudaStreamSynchronize(stream));
  tables.device_ = reinterpret_cast<const DeviceLayout*>(buffer.data() + header);
  const auto* device_plans = reinterpret_cast<const FastPlan*>(buffer.data() + fast);
  for (int bank = 0; bank < layout.num_banks; ++bank)
    tables.fast_[bank].plans = device_plans + bank * layout.num_kv_heads * layout.num_levels;
  tables.buffer_ = std::move(buffer);
  return tables;
}

FastStep LayoutTables::fast_step(const PageLayout& layout, int bank, int num_q_heads,
                                 const DeviceLimits& limits) const {
  const FastBank& fast = fast_[bank];
  if (fast.kind == FastKind::kNone || num_q_heads / layout.num_kv_heads > kFastQueries ||
      !fits_fast_attention(fast.kind, fast.stage_bytes, limits))
    return {};
  return {.plans = fast.plans,
          .num_levels = layout.num_levels,
          .num_plans = layout.num_kv_heads * layout.num_levels,
          .kind = fast.kind,
          .page_tokens = layout.page_tokens,
          .max_groups = fast.max_groups,
          .stage_bytes = fast.stage_bytes};
}

const LayoutTables& LayoutCache::of(const PageLayout& layout) {
  LOWKEY_CHECK(layout.id != 0, "layout of recipe {} has no id", layout.recipe);
  if (const auto found = tables_.find(layout.id); found != tables_.end()) return found->second;
  auto made = LayoutTables::create(layout, stream_);
  LOWKEY_CHECK(made.ok(), "tables of recipe {}: {}", layout.recipe, made.error().message);
  return tables_.emplace(layout.id, std::move(made).value()).first->second;
}

}  // namespace lowkey::kernels::cuda
