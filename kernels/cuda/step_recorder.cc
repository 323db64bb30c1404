#include "kernels/cuda/step_recorder.h"

#include <algorithm>

#include "base/check.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr size_t kMaxGraphBytes = size_t{512} << 20;

// Few paddings, so that few graphs serve all batches, and little computed in vain: rows that fill up cost
// products and one own page each. 1 and 2 rows are products of their own kind (gemv_kernels.h).
int pad(int rows) {
  if (rows <= 2) return rows;
  const int step = rows <= 4 ? 4 : rows <= 64 ? 8 : 32;
  return (rows + step - 1) / step * step;
}

size_t free_bytes() {
  size_t free = 0, total = 0;
  LOWKEY_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

}  // namespace

int StepRecorder::padded_rows(const Step& step) const {
  const int rows = static_cast<int>(step.sequences.size());
  if (capacity_ == 0 || rows == 0 || pad(rows) > kMaxStepRows) return 0;
  return attention_.accepts(step) ? pad(rows) : 0;
}

// Graphs of addresses that may be somebody else's now.
void StepRecorder::forget_outdated() {
  if (generation_ == pool_->generation()) return;
  if (!entries_.empty())
    LOWKEY_CUDA_CHECK(cudaStreamSynchronize(stream_));  // none is destroyed while it runs
  entries_.clear();
  counts_.graphs = counts_.bytes = 0;
  generation_ = pool_->generation();
}

void StepRecorder::shrink(size_t count, size_t bytes) {
  while (entries_.size() > count || (entries_.size() > 1 && counts_.bytes > bytes)) {
    Entry& oldest = entries_.back();
    counts_.graphs -= oldest.graph != nullptr;
    counts_.bytes -= oldest.bytes;
    entries_.pop_back();
  }
}

bool StepRecorder::begin(const Step& step) {
  LOWKEY_CHECK(doing_ == Doing::kNothing, "a step begins inside another one");
  const auto size = attention_.accepts(step);
  LOWKEY_CHECK(size && size->rows == pad(size->rows) && step.tokens.size() == step.sequences.size() &&
                   step.positions.size() == step.tokens.size() &&
                   step.logit_rows.size() == step.tokens.size(),
               "a step of {} tokens, {} positions, {} rows with logits for {} sequences", step.tokens.size(),
               step.positions.size(), step.logit_rows.size(), step.sequences.size());
  attention_.reserve(step, *size);
  forget_outdated();
  const Shape shape{step.owner, step.layout->id, size->rows, step.num_q_heads, size->pages > 0};
  auto found = std::ranges::find(entries_, shape, &Entry::shape);
  const bool known = found != entries_.end();
  if (known) {
    entries_.splice(entries_.begin(), entries_, found);
  } else {
    shrink(capacity_ - 1, kMaxGraphBytes);
    entries_.push_front({.shape = shape});
  }
  const Entry& entry = entries_.front();
  attention_.begin(step, *size, entry.windows);
  if (entry.graph) {
    LOWKEY_CUDA_CHECK(cudaGraphLaunch(entry.graph.get(), stream_));
    attention_.end();
    ++counts_.replayed;
    return false;
  }
  const StepTables& tables = attention_.tables();
  arguments_.bind(step.tokens, tables.tokens());
  arguments_.bind(step.positions, tables.positions());
  arguments_.bind(step.logit_rows, tables.logit_rows());
  doing_ = known ? Doing::kCapture : Doing::kCalls;
  // Other threads copy pages meanwhile, on streams of their own.
  if (known) LOWKEY_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  return true;
}

// What was captured becomes a graph, and runs.
void StepRecorder::record() {
  cudaGraph_t captured = nullptr;
  LOWKEY_CUDA_CHECK(cudaStreamEndCapture(stream_, &captured));
  const UniqueHandle<cudaGraph_t> owner(captured);
  Entry& entry = entries_.front();
  const size_t before = free_bytes();
  cudaGraphExec_t graph = nullptr;
  Status made = LOWKEY_CUDA_STATUS(cudaGraphInstantiate(&graph, captured, 0));
  if (!made.ok() && made.error().code == Code::kResourceExhausted) {
    shrink(1, 0);  // this one stays: it has none yet
    pool_->trim();
    made = LOWKEY_CUDA_STATUS(cudaGraphInstantiate(&graph, captured, 0));
  }
  LOWKEY_CHECK(made.ok(), "graph of a step of {} rows: {}", entry.shape.rows, made.error().message);
  entry.graph.reset(graph);
  // Others allocate, too: an estimate, and 0 where they freed more.
  const size_t after = free_bytes();
  entry.bytes = before > after ? before - after : 0;
  counts_.bytes += entry.bytes;
  ++counts_.graphs;
  ++counts_.captured;
  LOWKEY_CUDA_CHECK(cudaGraphLaunch(graph, stream_));
}

void StepRecorder::end() {
  LOWKEY_CHECK(doing_ != Doing::kNothing, "the end of no step");
  Entry& entry = entries_.front();
  if (doing_ == Doing::kCapture) {
    LOWKEY_CHECK(generation_ == pool_->generation(), "memory was given back while a step was captured");
    record();
  } else {
    entry.windows = attention_.windows();
  }
  doing_ = Doing::kNothing;
  arguments_.unbind();
  attention_.end();
  if (counts_.bytes > kMaxGraphBytes) shrink(entries_.size(), kMaxGraphBytes);
}

void StepRecorder::abandon() {
  if (doing_ == Doing::kNothing) return;
  if (doing_ == Doing::kCapture) {
    cudaGraph_t captured = nullptr;
    if (cudaStreamEndCapture(stream_, &captured) == cudaSuccess && captured != nullptr)
      (void)cudaGraphDestroy(captured);
  }
  entries_.pop_front();  // it has no graph
  doing_ = Doing::kNothing;
  arguments_.unbind();
  attention_.end();
}

void StepRecorder::set_capacity(size_t graphs) {
  capacity_ = graphs;
  shrink(graphs, kMaxGraphBytes);
}

StepGraphs::Counts StepRecorder::counts() const {
  return counts_;
}

}  // namespace lowkey::kernels::cuda
