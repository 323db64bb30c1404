// A whole decode step at batch 1, the 8B shape: embedding, 32 layers with attention over 4-bit pages, output
// head, recorded and told call by call, from the first call to the end of the last kernel. Its floor is the
// weights' bytes over the read bandwidth.
#include "tests/gpu/bench_layers.h"

namespace lowkey::testing {
namespace {

using namespace kernels;

class DecodeStep {
 public:
  DecodeStep(Bench& bench, const LayerShape& shape)
      : bench_(bench),
        shape_(shape),
        num_layers_(bench.sizes.of(32, 2)),
        vocab_(bench.sizes.of(128256, 128)),
        layout_(PageLayout::make(pages(), {num_layers_, shape.kv_heads, shape.dim, DType::kBf16}).value()),
        rope_(rope_of(shape)),
        activations_(bench, shape, 1),
        logits_(bench.floats(vocab_, 1)) {
    // 3.5 GB, used again and again: none of them stays in the caches until its next turn.
    const int distinct = bench.sizes.of(8, 1);
    const auto random = random_bf16(size_t(std::max(vocab_, 2 * shape.ffn)) * shape.hidden);
    for (int i = 0; i < distinct; ++i) layers_.push_back(std::make_unique<Layer>(bench, shape, random));
    embedding_ =
        bench.backend.pack_embedding(random.data(), DType::kBf16, vocab_, shape.hidden, shape.hidden);
  }

  // Room for `tokens`, the first `context` of them written.
  void fill(int context, int tokens) {
    const int pages = tokens / layout_.page_tokens + 1;
    slabs_ = bench_.backend.allocate(layout_.slab_bytes[0] * pages);
    tail_ = bench_.backend.allocate(layout_.tail_bytes);
    slab_pointers_.resize(size_t(pages) * kMaxSlabs);
    for (int page = 0; page < pages; ++page)
      slab_pointers_[size_t(page) * kMaxSlabs] = slabs_->data() + page * layout_.slab_bytes[0];
    levels_.assign(pages, 1);
    const Layer::Activations rows(bench_, shape_, context);
    slice_ = {.num_rows = context,
              .slabs = slab_pointers_.data(),
              .page_levels = levels_.data(),
              .tail = tail_->data()};
    for (int bank = 0; bank < num_layers_; ++bank) attend(rows, bank);
    slice_ = {.num_rows = 1,
              .first_slot = context,
              .slabs = slab_pointers_.data(),
              .page_levels = levels_.data(),
              .tail = tail_->data()};
  }

  // Seconds of the next token.
  double run() {
    StepGraphs& graphs = *bench_.backend.step_graphs();
    tokens_[0] = slice_.first_slot % vocab_;
    positions_[0] = slice_.first_slot;
    const StepGraphs::Step step{.owner = this,
                                .layout = &layout_,
                                .num_q_heads = shape_.heads,
                                .tokens = tokens_,
                                .positions = positions_,
                                .logit_rows = logit_rows_,
                                .sequences = {&slice_, 1}};
    const auto begin = std::chrono::steady_clock::now();
    const bool recorded = graphs.padded_rows(step) > 0;
    if (!recorded || graphs.begin(step)) {
      make_calls();
      if (recorded) graphs.end();
    }
    bench_.backend.synchronize();
    ++slice_.first_slot;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  double weight_bytes() const {
    return 2 * (num_layers_ * shape_.weights() + double(vocab_) * shape_.hidden);
  }

 private:
  static PageSpec pages() {
    PageSpec spec = PageSpec::embedded("q4", 4, 0);
    spec.page_tokens = 64;
    return spec;
  }
  void attend(const Layer::Activations& a, int bank) {
    bench_.backend.attend({.layout = &layout_,
                           .bank = bank,
                           .num_q_heads = shape_.heads,
                           .scale = 1 / std::sqrt(static_cast<float>(shape_.dim)),
                           .q = a.of(a.q),
                           .k = a.of(a.k),
                           .v = a.of(a.v),
                           .out = a.of(a.attended),
                           .sequences = {&slice_, 1}});
  }
  void make_calls() {
    Backend& b = bench_.backend;
    const Layer::Activations& a = activations_;
    b.embed(*embedding_, tokens_, 0, 1, a.of(a.hidden));
    for (int bank = 0; bank < num_layers_; ++bank)
      layers_[bank % layers_.size()]->run(b, a, rope_, positions_, [&] { attend(a, bank); });
    b.gather_rows(a.of(a.hidden), logit_rows_, a.of(a.normed));
    b.linear(*embedding_, a.of(a.normed), nullptr, false, {logits_->data(), 1, vocab_});
  }

  Bench& bench_;
  const LayerShape shape_;
  const int num_layers_, vocab_;
  const PageLayout layout_;
  const RopeTable rope_;
  const Layer::Activations activations_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::unique_ptr<Linear> embedding_;
  std::unique_ptr<Buffer> logits_, slabs_, tail_;
  std::vector<std::byte*> slab_pointers_;
  std::vector<uint8_t> levels_;
  SequenceSlice slice_;
  std::vector<int32_t> tokens_ = {0}, positions_ = {0}, logit_rows_ = {0};
};

double median(std::vector<double> times) {
  std::ranges::sort(times);
  return times[times.size() / 2];
}

}  // namespace

boost::json::object bench_decode_step(Bench& bench) {
  const int context = bench.sizes.of(1024, 70), steps = bench.sizes.of(200, 6);
  DecodeStep step(bench, bench.sizes.tiny ? kTinyLayer : kFullLayer);
  step.fill(context, context + 2 * steps);
  std::vector<double> recorded, told;
  for (int i = 0; i < steps; ++i) recorded.push_back(step.run());
  const StepGraphs::Counts counts = bench.backend.step_graphs()->counts();
  bench.backend.step_graphs()->set_capacity(0);
  for (int i = 0; i < steps; ++i) told.push_back(step.run());
  const double seconds = median(recorded), floor = step.weight_bytes() / bench.read_bytes_per_second;
  return {{"context", context},
          {"weight_bytes", step.weight_bytes()},
          {"floor_seconds", floor},
          {"seconds", seconds},
          {"replayed_steps", counts.replayed},
          {"seconds_told_call_by_call", median(told)},
          {"fraction_of_read_bandwidth", floor / seconds}};
}

}  // namespace lowkey::testing
