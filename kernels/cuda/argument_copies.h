// Small host arrays that kernels read: ids, positions, frequencies.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/stream.h"

namespace lowkey::kernels::cuda {

class ArgumentCopies {
 public:
  static Result<ArgumentCopies> create();

  // Arrays of a step whose copies have their places (StepTables): copy() answers with these, by address, and
  // until unbind() knows no others.
  void bind(std::span<const int32_t> values, const int32_t* device) { bound_.push_back({values, device}); }
  void unbind() { bound_.clear(); }

  // Device copy of `values`, for what is put on `stream` before kSlots further calls. An array that was
  // copied lately (positions are the same in every layer) is not copied again.
  const int32_t* copy(std::span<const int32_t> values, cudaStream_t stream);
  // Device copy that stays.
  const float* keep(const std::vector<float>& values, cudaStream_t stream);

 private:
  struct Slot {
    Event copied;
    PinnedBuffer host;
    DeviceBuffer device;
    std::vector<int32_t> content;
    uint64_t last_used = 0;
  };
  struct Bound {
    std::span<const int32_t> values;
    const int32_t* device;
  };
  static constexpr int kSlots = 8;

  std::vector<Slot> slots_;
  std::vector<Bound> bound_;
  uint64_t uses_ = 0;
  std::map<std::vector<float>, DeviceBuffer> kept_;
};

}  // namespace lowkey::kernels::cuda
