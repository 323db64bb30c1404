#include "kernels/cuda/argument_copies.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr size_t kLeastBytes = 16 << 10;  // 4,096 ids: so that arrays of many lengths fit every slot

template <class T>
T must(Result<T> result) {
  LOWKEY_CHECK(result.ok(), "{}", result.error().message);
  return std::move(result).value();
}

}  // namespace

Result<ArgumentCopies> ArgumentCopies::create() {
  ArgumentCopies copies;
  for (int i = 0; i < kSlots; ++i) {
    LOWKEY_ASSIGN(event, Event::create());
    copies.slots_.push_back({std::move(event)});
  }
  return copies;
}

const int32_t* ArgumentCopies::copy(std::span<const int32_t> values, cudaStream_t stream) {
  if (!bound_.empty()) {
    const auto named = std::ranges::find_if(bound_, [&](const Bound& bound) {
      return bound.values.data() == values.data() && bound.values.size() == values.size();
    });
    LOWKEY_CHECK(named != bound_.end(), "an array of {} that the step did not name", values.size());
    return named->device;
  }
  Slot* oldest = &slots_[0];
  for (Slot& slot : slots_) {
    if (slot.last_used > 0 && std::ranges::equal(slot.content, values)) {
      slot.last_used = ++uses_;
      return slot.device.as<int32_t>();
    }
    if (slot.last_used < oldest->last_used) oldest = &slot;
  }
  const Status copied = oldest->copied.synchronize();
  LOWKEY_CHECK(copied.ok(), "{}", copied.error().message);
  if (oldest->device.size() < values.size_bytes() || oldest->device.data() == nullptr) {
    const size_t room = std::max(kLeastBytes, values.size_bytes() * 2);
    oldest->host = must(PinnedBuffer::create(room));
    oldest->device = must(DeviceBuffer::create(room));
  }
  if (!values.empty()) std::memcpy(oldest->host.data(), values.data(), values.size_bytes());
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(oldest->device.data(), oldest->host.data(), values.size_bytes(),
                                    cudaMemcpyHostToDevice, stream));
  oldest->copied.record(stream);
  oldest->content.assign(values.begin(), values.end());
  oldest->last_used = ++uses_;
  return oldest->device.as<int32_t>();
}

const float* ArgumentCopies::keep(const std::vector<float>& values, cudaStream_t stream) {
  auto found = kept_.find(values);
  if (found == kept_.end()) {
    const size_t bytes = values.size() * sizeof(float);
    DeviceBuffer buffer = must(DeviceBuffer::create(bytes));
    LOWKEY_CUDA_CHECK(cudaMemcpyAsync(buffer.data(), values.data(), bytes, cudaMemcpyHostToDevice, stream));
    LOWKEY_CUDA_CHECK(cudaStreamSynchronize(stream));
    found = kept_.emplace(values, std::move(buffer)).first;
  }
  return found->second.as<float>();
}

}  // namespace lowkey::kernels::cuda
