#include "kernels/cuda/cuda_attention.h"

#include <algorithm>
#include <cstddef>

#include "base/check.h"
#include "kernels/cuda/encode_kernels.h"
#include "kernels/cuda/query_kernels.h"

namespace lowkey::kernels::cuda {
namespace {

// Bound of scratch memory: features are made in parts where a step has more.
constexpr size_t kMaxFeatureBytes = size_t{64} << 20;
constexpr size_t kLeastUploadBytes = size_t{64} << 10;  // steps of many sizes fit every slot

}  // namespace

Result<CudaAttention> CudaAttention::create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                            LayoutCache& layouts, const DeviceLimits& limits) {
  CudaAttention attention(std::move(pool), stream, layouts, limits);
  for (int i = 0; i < kUploads; ++i) {
    LOWKEY_ASSIGN(event, Event::create());
    attention.uploads_.emplace_back(std::move(event));
  }
  return attention;
}

std::byte* CudaAttention::upload(const DeviceImage& image) {
  Upload* oldest = &uploads_[0];
  for (Upload& slot : uploads_) {
    if (slot.last_used > 0 && slot.content == image) {
      slot.last_used = ++uses_;
      return slot.device.data();
    }
    if (slot.last_used < oldest->last_used) oldest = &slot;
  }
  const Status copied = oldest->copied.synchronize();
  LOWKEY_CHECK(copied.ok(), "{}", copied.error().message);
  if (oldest->device.size() < image.size()) {
    const size_t room = std::max(kLeastUploadBytes, image.size() * 3 / 2);
    auto host = PinnedBuffer::create(room);
    LOWKEY_CHECK(host.ok(), "{}", host.error().message);
    auto device = DeviceBuffer::create(room);
    LOWKEY_CHECK(device.ok(), "{}", device.error().message);
    oldest->host = std::move(host).value();
    oldest->device = std::move(device).value();
  }
  image.write(oldest->host.data(), oldest->device.data());
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(oldest->device.data(), oldest->host.data(), image.size(),
                                    cudaMemcpyHostToDevice, stream_));
  oldest->copied.record(stream_);
  oldest->content = image;
  oldest->last_used = ++uses_;
  return oldest->device.data();
}

// Puts the arrays on the device.
CudaAttention::Placed CudaAttention::place(const AttentionStep& step, AttentionPlan& plan) {
  const PageLayout& layout = *step.layout;
  const int rows = static_cast<int>(plan.rows.size());
  size_t floats = 0;
  const auto queries_of = [&](const DeviceMap& map) {
    return size_t(rows) * step.num_q_heads * (map.stride + 1);
  };
  const bool mapped =
      std::ranges::any_of(plan.waves, [](const AttentionWave& wave) { return !wave.prefill; });
  for (const DeviceMap& map : plan.maps) floats += mapped ? queries_of(map) : 0;
  float* next = queries_.get<float>(floats);
  for (DeviceMap& map : plan.maps) {
    if (!mapped) break;
    map.queries = next;
    map.biases = next + size_t(rows) * step.num_q_heads * map.stride;
    next += queries_of(map);
  }
  DeviceImage& image = plan.image;
  const size_t sequences = image.add(plan.sequences), segments = image.add(plan.segments);
  for (size_t i = 0; i < plan.sequences.size(); ++i)
    image.point(sequences + i * sizeof(DeviceSequence) + offsetof(DeviceSequence, slabs),
                plan.sequence_slabs[i]);
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const size_t at = segments + i * sizeof(DeviceSegment);
    image.point(at + offsetof(DeviceSegment, slabs), plan.segment_arrays[i][0]);
    if (plan.segments[i].own) image.point(at + offsetof(DeviceSegment, levels), plan.segment_arrays[i][1]);
  }
  const size_t device_rows = image.add(plan.rows), pieces = image.add(plan.pieces),
               maps = image.add(plan.maps), items = image.add(plan.items), pages = image.add(plan.pages),
               tiles = image.add(plan.tiles);
  const std::byte* base = upload(image);
  return {.view = {.layout = layouts_.of(layout).device(),
                   .bank = step.bank,
                   .head_dim = layout.head_dim,
                   .num_q_heads = step.num_q_heads,
                   .group = step.num_q_heads / layout.num_kv_heads,
                   .num_rows = rows,
                   .scale = step.scale,
                   .soft_cap = step.soft_cap,
                   .q = step.q.as<float>(),
                   .k = step.k.as<float>(),
                   .v = step.v.as<float>(),
                   .out = step.out.as<float>(),
                   .sequences = reinterpret_cast<const DeviceSequence*>(base + sequences),
                   .segments = reinterpret_cast<const DeviceSegment*>(base + segments),
                   .rows = reinterpret_cast<const DeviceRow*>(base + device_rows),
                   .maps = reinterpret_cast<const DeviceMap*>(base + maps),
                   .pieces = reinterpret_cast<const int*>(base + pieces)},
          .items = reinterpret_cast<const DeviceItem*>(base + items),
          .pages = reinterpret_cast<const DevicePage*>(base + pages),
          .tiles = reinterpret_cast<const PrefillTile*>(base + tiles)};
}

void CudaAttention::write_pages(const AttentionStep& step, const AttentionPlan& plan, const Placed& placed) {
  const PageLayout& layout = *step.layout;
  const int count = static_cast<int>(plan.pages.size()), stride = layouts_.of(layout).max_dim();
  if (count == 0) return;
  const size_t floats = size_t(2) * layout.vectors_per_side() * layout.page_tokens * stride;
  const int part = std::max<int>(1, static_cast<int>(kMaxFeatureBytes / (floats * sizeof(float))));
  const FeatureBlock features{features_.get<float>(std::min(part, count) * floats), stride};
  for (int first = 0; first < count; first += part) {
    const int pages = std::min(part, count - first);
    const PageList list{placed.pages + first, pages};
    launch_map_step_rows(stream_, placed.view, shape_of(layout), list, features);
    launch_quantize_step(stream_, placed.view, shape_of(layout), list, features);
  }
  launch_write_sinks(stream_, placed.view, shape_of(layout), {placed.pages, count});
}

// Buffers of the fast kernels' queries.
void CudaAttention::place_queries(AttentionPlan& plan, int num_kv_heads) {
  if (std::ranges::all_of(plan.waves, &AttentionWave::prefill)) return;
  const size_t count = plan.rows.size() * num_kv_heads * kFastQueries;
  constexpr size_t kBytes = sizeof(FastQuery) + sizeof(float);
  std::byte* next = rounded_queries_.get<std::byte>(plan.fast.size() * count * kBytes);
  for (FastStep& fast : plan.fast) {
    if (fast.kind != FastKind::kNone) {
      fast.queries = reinterpret_cast<FastQuery*>(next);
      fast.factors = reinterpret_cast<float*>(next + count * sizeof(FastQuery));
    }
    next += count * kBytes;
  }
}

void CudaAttention::attend_wave(const AttentionPlan& plan, const AttentionWave& wave, const Placed& placed,
                                const Partials& partials, float* softmax) {
  StepView view = placed.view;
  view.first_row = wave.first_row;
  view.num_rows = wave.num_rows;
  for (size_t map = 0; map < plan.maps.size(); ++map)
    launch_map_queries(stream_, view, plan.maps[map], plan.fast[map]);
  for (const AttentionBatch& batch : wave.batches) {
    const ItemList items{placed.items + batch.first_item, batch.num_items};
    const FastStep& fast = plan.fast[batch.map];
    if (fast.kind == FastKind::kNone) {
      launch_attend_pages(stream_, view, items, plan.extents, partials);
    } else {
      launch_decode_attention(stream_, view, fast, items, limits_, partials);
    }
  }
  launch_finish_rows(stream_, view, plan.extents, partials, softmax, false);
}

void CudaAttention::attend(const AttentionStep& step) {
  AttentionPlan plan = AttentionPlanner(step, layouts_, limits_).make();
  const Placed placed = place(step, plan);
  write_pages(step, plan, placed);
  place_queries(plan, step.layout->num_kv_heads);
  const bool observed = std::ranges::any_of(
      step.sequences, [](const SequenceSlice& sequence) { return sequence.observer != nullptr; });
  float* softmax = observed ? softmax_.get<float>(size_t(2) * plan.rows.size() * step.num_q_heads) : nullptr;
  const int stride = plan.extents.max_dim + 2;
  int most_states = 0;
  for (const AttentionWave& wave : plan.waves) most_states = std::max(most_states, wave.num_states);
  const Partials partials{partials_.get<float>(size_t(most_states) * placed.view.group * stride), stride};
  for (const AttentionWave& wave : plan.waves)
    if (!wave.prefill) attend_wave(plan, wave, placed, partials, softmax);
  if (!plan.tiles.empty()) {
    launch_prefill_attention(stream_, placed.view, plan.prefill_shape, placed.tiles,
                             static_cast<int>(plan.tiles.size()), step.layout->num_kv_heads);
  }
  if (observed) observe(step, placed, softmax);
  if (step.last_reader) launch_write_tails(stream_, placed.view);
}

void CudaAttention::observe(const AttentionStep& step, const Placed& placed, const float* softmax) {
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceSlice& sequence = step.sequences[i];
    if (sequence.observer == nullptr) continue;
    const TokenObserver& wanted = *sequence.observer;
    launch_observe(stream_, placed.view,
                   {static_cast<int>(i), wanted.capacity, wanted.column_sums, wanted.window_sums,
                    wanted.window_first, wanted.key_norms},
                   sequence.first_slot + sequence.num_rows, step.layout->num_kv_heads, softmax);
  }
}

}  // namespace lowkey::kernels::cuda
