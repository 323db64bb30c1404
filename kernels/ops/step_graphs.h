// Decode steps that a device repeats without being told every call again (CUDA graphs). Two steps of one row
// per sequence and of as many rows make the same calls on the same memory; what differs lies in arrays that
// are known before the first call. So the caller gives these arrays first, and makes the calls when asked to:
//
//   if (graphs.begin(step)) { ... the step's calls, given these very arrays ...; graphs.end(); }
//
// The first step of a shape makes its calls as ever (what grows on first use grows), the second one's are
// recorded, further ones repeat the record. Results are the same, bit for bit, however a step was run.
// Thread rule: the step thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lowkey::kernels {

struct PageLayout;
struct SequenceSlice;

class StepGraphs {
 public:
  struct Step {
    const void* owner = nullptr;         // whose calls: a model
    const PageLayout* layout = nullptr;  // of every attend()
    int num_q_heads = 0;                 // of every attend()
    // Of padded_rows() rows, one per sequence. The rows added have a token and a position that exist, and
    // slices without slabs and tail: they attend to themselves and leave nothing. All live until end().
    std::span<const int32_t> tokens, positions, logit_rows;
    std::span<const SequenceSlice> sequences;
  };
  struct Counts {
    uint64_t captured = 0, replayed = 0;  // steps
    size_t graphs = 0;                    // kept now
    size_t bytes = 0;                     // of the device's memory that they take, as far as it can be told
  };

  virtual ~StepGraphs() = default;

  // Rows that a step of these sequences is to have; 0: no such step, it makes its calls without begin(). Of
  // the step alone, so that every rank of a replica comes to the same answer.
  virtual int padded_rows(const Step& step) const = 0;
  // False: the step has been repeated, there is nothing left to call.
  virtual bool begin(const Step& step) = 0;
  // Every call was made.
  virtual void end() = 0;
  // A call between begin() and end() failed: nothing is kept of them.
  virtual void abandon() = 0;

  // Most graphs to keep, the least recently used go first; 0: every step makes its calls.
  virtual void set_capacity(size_t graphs) = 0;
  virtual Counts counts() const = 0;
};

}  // namespace lowkey::kernels
