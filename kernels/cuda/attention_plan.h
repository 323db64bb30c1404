// A step's attention as arrays for the device: sequences, segments (runs of pages of one format), rows, and
// items: the pages that one row attends at once under one KV head. How a row's pages are cut into items
// depends on the row's own sequence alone, and partial results merge in a fixed order, so that a row's result
// does not depend on its batch.
#pragma once

#include <array>
#include <vector>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device_image.h"
#include "kernels/cuda/layout_tables.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

// Items of one launch: of one map.
struct AttentionBatch {
  int map = 0;
  int first_item = 0, num_items = 0;
};

// Rows whose partial results are in memory together.
struct AttentionWave {
  int first_row = 0, num_rows = 0;
  int num_states = 0;
  bool prefill = false;  // whole rows by the prefill kernel: no partial results
  std::vector<AttentionBatch> batches;
};

struct AttentionPlan {
  DeviceImage image;  // slabs and levels; then all that the device is given
  std::vector<DeviceSequence> sequences;
  std::vector<DeviceSegment> segments;
  std::vector<std::array<size_t, 2>> segment_arrays;  // offsets of slabs and levels
  std::vector<size_t> sequence_slabs;                 // offsets
  std::vector<DeviceRow> rows;
  std::vector<int> pieces;
  std::vector<std::vector<DeviceItem>> pending;  // by map, of the wave at hand
  std::vector<DeviceItem> items;
  std::vector<DevicePage> pages;  // to be encoded
  std::vector<DeviceMap> maps;
  std::vector<FastStep> fast;  // by map; kind kNone: the plain kernel
  std::vector<AttentionWave> waves;
  StepExtents extents;
  std::vector<int> prefill;  // sequences
  PrefillShape prefill_shape;
  std::vector<PrefillTile> tiles;
};

class AttentionPlanner {
 public:
  // All outlive it.
  AttentionPlanner(const AttentionStep& step, LayoutCache& layouts, const DeviceLimits& limits)
      : step_(step), layouts_(layouts), limits_(limits) {}

  // Once.
  AttentionPlan make();

 private:
  void add_sequence(const SequenceSlice& sequence);
  void add_rows(const SequenceSlice& sequence);
  bool takes_prefill(const SequenceSlice& sequence) const;
  PrefillShape prefill_shape() const;
  void add_prefill(const SequenceSlice& sequence);
  void make_tiles();
  void end_wave();
  FastStep fast_step(const PageLayout& layout, int bank) const;

  const AttentionStep& step_;
  LayoutCache& layouts_;
  const DeviceLimits& limits_;
  AttentionPlan plan_;
};

}  // namespace lowkey::kernels::cuda
