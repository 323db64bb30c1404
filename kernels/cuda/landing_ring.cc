#include "kernels/cuda/landing_ring.h"

#include <algorithm>
#include <utility>

namespace lowkey::kernels::cuda {
namespace {

using Piece = PageCopies::Piece;

// Whether the kernel can move it: it moves whole words.
bool aligned(const Piece& run) {
  return (reinterpret_cast<uintptr_t>(run.device) | run.bytes) % kLandingAlignment == 0;
}

}  // namespace

Result<LandingRing> LandingRing::create() {
  LOWKEY_ASSIGN(in, Stream::create());
  LOWKEY_ASSIGN(land, Stream::create_urgent());
  LOWKEY_ASSIGN(memory, DeviceBuffer::create(kStages * kStageBytes));
  std::vector<Stage> stages;
  for (int i = 0; i < kStages; ++i) {
    LOWKEY_ASSIGN(arrived, Event::create());
    LOWKEY_ASSIGN(landed, Event::create());
    stages.push_back({std::move(arrived), std::move(landed)});
  }
  return LandingRing(std::move(in), std::move(land), std::move(memory), std::move(stages));
}

Status LandingRing::upload(std::span<const Piece> pieces) {
  Status begun;
  Piece run;  // neighbours on both sides are one
  for (const Piece& piece : pieces) {
    if (piece.device == run.device + run.bytes && piece.host == run.host + run.bytes) {
      run.bytes += piece.bytes;
      continue;
    }
    begun = begin(run);
    if (!begun.ok()) break;
    run = piece;
  }
  if (begun.ok()) begun = begin(run);
  if (begun.ok()) begun = close_stage();
  filled_ = 0;
  landings_.count = 0;
  waiting_ = {};
  // What was begun reads the caller's memory, whatever failed.
  const Status crossed = in_.synchronize(), landed = land_.synchronize();
  return !begun.ok() ? begun : !crossed.ok() ? crossed : landed;
}

Status LandingRing::begin(const Piece& run) {
  if (run.bytes == 0) return {};
  if (run.bytes < kStraightBytes && aligned(run)) return add(run);
  return LOWKEY_CUDA_STATUS(
      cudaMemcpyAsync(run.device, run.host, run.bytes, cudaMemcpyHostToDevice, in_.get()));
}

// Puts a run behind what the stage has, in parts where the stage ends.
Status LandingRing::add(Piece run) {
  while (run.bytes > 0) {
    if (filled_ == 0) in_.wait(stages_[turn_].landed.get());  // what it had has left it
    const size_t part = std::min(run.bytes, kStageBytes - filled_);
    if (waiting_.host + waiting_.bytes != run.host) {
      LOWKEY_TRY(copy_waiting());
      waiting_ = {.device = stage() + filled_, .host = run.host};
    }
    waiting_.bytes += part;
    filled_ += part;
    landings_.to[landings_.count] = run.device;
    landings_.ends[landings_.count] = static_cast<uint32_t>(filled_ / kLandingAlignment);
    ++landings_.count;
    if (filled_ == kStageBytes || landings_.count == kMostLandings) LOWKEY_TRY(close_stage());
    run = {run.device + part, run.host + part, run.bytes - part};
  }
  return {};
}

Status LandingRing::copy_waiting() {
  const Piece run = std::exchange(waiting_, {});
  if (run.bytes == 0) return {};
  return LOWKEY_CUDA_STATUS(
      cudaMemcpyAsync(run.device, run.host, run.bytes, cudaMemcpyHostToDevice, in_.get()));
}

// The stage's pieces are on their way into place, and the next stage's turn comes.
Status LandingRing::close_stage() {
  if (filled_ == 0) return {};
  LOWKEY_TRY(copy_waiting());
  const Stage& events = stages_[turn_];
  events.arrived.record(in_.get());
  land_.wait(events.arrived.get());
  launch_land(land_.get(), stage(), landings_);
  events.landed.record(land_.get());
  filled_ = 0;
  landings_.count = 0;
  turn_ = (turn_ + 1) % kStages;
  return {};
}

}  // namespace lowkey::kernels::cuda
