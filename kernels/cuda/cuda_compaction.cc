#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/cuda_attention.h"
#include "kernels/cuda/encode_kernels.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr size_t kMaxFeatureBytes = size_t{64} << 20;  // of scratch memory: more pages take several rounds

}  // namespace

void CudaAttention::compact(const Compaction& c) {
  const PageLayout &from = *c.from, &to = *c.to;
  for (Side side : {Side::kKey, Side::kValue}) {
    for (int head = 0; head < from.num_kv_heads; ++head)
      LOWKEY_CHECK(is_exact(from, from.vector(c.bank, side, head)),
                   "compaction from pages that are not exact: bank {}, head {}", c.bank, head);
  }
  LOWKEY_CHECK(from.head_dim == to.head_dim && from.num_kv_heads == to.num_kv_heads &&
                   from.dtype == to.dtype && c.num_kept <= c.num_slots &&
                   c.num_kept % to.page_tokens < from.page_tokens,
               "compaction of {} of {} slots, pages of {} to pages of {} tokens", c.num_kept, c.num_slots,
               from.page_tokens, to.page_tokens);
  const int pages = c.num_kept / to.page_tokens, left = c.num_kept % to.page_tokens;
  const auto slabs_of = [](std::byte* const* slabs, int count) {
    return std::span<std::byte* const>(slabs, static_cast<size_t>(count) * kMaxSlabs);
  };
  DeviceImage image;
  const size_t slabs = image.add(slabs_of(c.slabs, c.num_slots / from.page_tokens));
  const size_t to_slabs = image.add(slabs_of(c.to_slabs, pages));
  const size_t keep = image.add(std::span<const int32_t>(c.keep, size_t(from.num_kv_heads) * c.num_kept));
  const std::byte* base = upload(image);
  const CompactionView view{.from = layouts_.of(from).device(),
                            .to = layouts_.of(to).device(),
                            .bank = c.bank,
                            .to_bank = c.to_bank,
                            .slabs = reinterpret_cast<std::byte* const*>(base + slabs),
                            .to_slabs = reinterpret_cast<std::byte* const*>(base + to_slabs),
                            .tail = c.tail,
                            .num_slots = c.num_slots,
                            .keep = reinterpret_cast<const int32_t*>(base + keep),
                            .num_kept = c.num_kept};
  const int stride = layouts_.of(to).max_dim();
  const size_t floats = size_t(2) * to.vectors_per_side() * to.page_tokens * stride;
  const int part = std::max<int>(1, static_cast<int>(kMaxFeatureBytes / (floats * sizeof(float))));
  const FeatureBlock features{features_.get<float>(std::min(part, std::max(1, pages)) * floats), stride};
  for (int first = 0; first < pages; first += part) {
    const int count = std::min(part, pages - first);
    launch_map_kept_rows(stream_, view, shape_of(to), first, count, features);
    launch_quantize_kept(stream_, view, shape_of(to), first, count, features);
  }
  launch_write_kept_sink(stream_, view, shape_of(to));
  std::byte* rows =
      kept_.get<std::byte>(size_t(2) * from.num_kv_heads * left * from.head_dim * dtype_bytes(from.dtype));
  launch_write_kept_tail(stream_, view, shape_of(from), pages * to.page_tokens, left, rows);
}

}  // namespace lowkey::kernels::cuda
