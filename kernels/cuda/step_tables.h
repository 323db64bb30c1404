// What differs between two decode steps of one shape, at places in device memory that stay: kernels of a
// recorded step find it there, whatever step it is. Filled on the host and copied before the step.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "kernels/cuda/device_pool.h"
#include "kernels/cuda/layout_tables.h"
#include "kernels/cuda/step_view.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

inline constexpr int kMaxStepRows = 256;
inline constexpr int kMaxStepStates = 1024;  // partial results of a row under one head: 512k tokens and more

// How large a step is; what launches and memory have to be enough for.
struct StepSize {
  int rows = 0;         // padded
  int pieces = 0;       // of all rows, under one head
  int most_pieces = 0;  // of one row
  int pages = 0;        // that it completes
};
// None: it is no decode step of the kind that can be recorded.
std::optional<StepSize> size_of(const StepGraphs::Step& step);

class StepTables {
 public:
  // `layouts` outlives it.
  StepTables(std::shared_ptr<DevicePool> pool, cudaStream_t stream, Event copied, LayoutCache& layouts)
      : pool_(std::move(pool)), stream_(stream), copied_(std::move(copied)), layouts_(layouts) {}

  // Makes room for the step; memory that was outgrown is given back.
  void reserve(const StepGraphs::Step& step, const StepSize& size);
  // Fills and copies what all layers have in common; `map`: of the layout's own pages. Waits until the copies
  // of the step before are complete. REQUIRES: reserve() for this step; it lives until the next one begins.
  void begin(const StepGraphs::Step& step, const StepSize& size, const DeviceMap& map);
  // Rows and items of layers with this sliding window (0: none): filled and copied where they are not yet.
  void fill(int window);

  // Where kernels find it; the same for all steps as long as the pool's generation stays.
  const int32_t* tokens() const { return &table()->tokens[0]; }
  const int32_t* positions() const { return &table()->positions[0]; }
  const int32_t* logit_rows() const { return &table()->logit_rows[0]; }
  PageList pages() const;
  ItemList items(int window) const;  // REQUIRES: fill(window)
  // Lists of the view; the rest of it is the layer's.
  void place(int window, StepView& view) const;
  int piece_capacity() const { return piece_capacity_; }

 private:
  // One per process; the same on the host and on the device.
  struct Table {
    int32_t tokens[kMaxStepRows], positions[kMaxStepRows], logit_rows[kMaxStepRows];
    int32_t num_pages;
    DevicePage pages[kMaxStepRows];
    DeviceSequence sequences[kMaxStepRows];
    DeviceSegment segments[kMaxStepRows];
    DeviceMap map;
  };
  // Before the pieces, and after them the items.
  struct WindowHeader {
    int32_t num_items;
    DeviceRow rows[kMaxStepRows];
  };
  struct Mirrored {
    PinnedBuffer host;
    DeviceBuffer device;
  };
  struct Window {
    int window = 0;
    bool filled = false;  // for the step at hand
    Mirrored memory;
  };

  void allocate(Mirrored& memory, size_t bytes) const;
  void copy(Mirrored& memory, size_t first, size_t bytes) const;
  const Table* table() const { return reinterpret_cast<const Table*>(table_.device.as<std::byte>()); }
  const Window& window_of(int window) const;
  size_t pieces_at() const { return sizeof(WindowHeader); }
  size_t items_at() const;
  size_t window_bytes() const;
  void add_sequence(int row, Table& table);
  void add_row(int row, int window, WindowHeader& header, int32_t* pieces, DeviceItem* items);

  std::shared_ptr<DevicePool> pool_;
  cudaStream_t stream_;
  Event copied_;
  LayoutCache& layouts_;
  Mirrored table_, slabs_;
  std::deque<Window> windows_;
  int piece_capacity_ = 0, heads_ = 0;
  StepGraphs::Step step_;
  int rows_ = 0, next_piece_ = 0;
  size_t next_slab_byte_ = 0;
};

}  // namespace lowkey::kernels::cuda
