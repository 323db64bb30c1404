// The operations a model is made of, on one device. One implementation per device: kernels/cpu; kernels/cuda.
// Thread rule: one step thread uses a Backend; it may use its own compute pool inside a call, and every call
// has finished on return (CPU) or is ordered on the backend's stream (GPU). Activations are f32 [tokens,
// features], row-major, contiguous, in memory from allocate().
//
// Memory: tensors, weight vectors, slabs, tails and whatever else lies in buffers of allocate() is *device
// memory*. Where host_accessible() is false nobody but the backend may touch it: bytes cross by upload() and
// download() alone. Everything else that a call takes is host memory, read before it returns: spans of ids,
// positions and rows, arrays of slab addresses and levels, layouts, rope tables.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops/page_copies.h"
#include "kernels/ops/step_graphs.h"
#include "kernels/ops/tensor.h"
#include "kernels/ops/token_draw.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

class FewBitMatrix;

// A weight matrix [out, in] packed once for this device's matrix products.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual int in_features() const = 0;
  virtual int out_features() const = 0;
  virtual size_t packed_bytes() const = 0;
};

// Rotary frequencies of a layer.
struct RopeTable {
  int head_dim = 0;
  std::vector<float> inv_freq;    // after scaling; [head_dim / 2], fewer where only a head's front is rotated
  float attention_factor = 1.0f;  // multiplies cos and sin (YaRN); 1 otherwise
};

// Complete pages of one bank that a recipe keeps apart from the sequence's own: what is left of a prompt
// after tokens were chosen, and blocks encoded later (kvstore/dials/tokens). Read only, seen whole by every
// row of the step.
struct ArchivedPages {
  const PageLayout* layout = nullptr;  // of the bank group; same heads, head_dim and dtype as the step's
  int bank = 0;                        // in that layout
  std::byte* const* slabs = nullptr;   // slabs[page * kMaxSlabs + slab]
  int num_pages = 0;
};

// What token policies want to know of one sequence; null pointers: not wanted. Slots as in SequenceSlice. The
// sums grow by one f32 addition per row, in ascending order, of the row's softmax weight summed over the
// query heads of each KV head, so they do not depend on how a prompt is cut into steps, to the bit. (Where
// several layers read one bank, rows of different layers alternate with the steps: equal to rounding.) The
// softmax is over all that the row sees; only slots of the sequence's own pages and tail have sums. REQUIRES:
// exact pages. All are [num_banks][num_kv_heads][capacity], f32.
struct TokenObserver {
  int capacity = 0;              // slots
  float* column_sums = nullptr;  // sum over rows of their softmax weight on the slot (H2O, MiniKV)
  float* window_sums = nullptr;  // the same over rows from slot `window_first` on (SnapKV)
  int window_first = 0;
  float* key_norms = nullptr;  // |k| of the slot (L2 norm strategy)
};

// One sequence's rows in this step. A *slot* counts the tokens in the sequence's own pages and tail; it is
// the token's position unless tokens were moved to archived pages.
struct SequenceSlice {
  int first_row = 0;   // in the step's activations
  int num_rows = 0;    // >= 1, consecutive slots
  int first_slot = 0;  // of first_row
  // Slab pointers of the sequence's pages: slabs[page * kMaxSlabs + slab], for pages
  // 0 .. (first_slot + num_rows) / page_tokens - 1 (those completed in this step included). Host array.
  // A level that is not there has null.
  std::byte* const* slabs = nullptr;
  // Leading levels to read of each of those pages, 1 .. layout.num_levels. Pages completed in this step have
  // all their slabs, whatever is read of them. 0: the page is wholly behind the step's window for every row,
  // and may have no slabs any more.
  const uint8_t* page_levels = nullptr;
  // Exact rows of the incomplete page (layout.tail_bytes); read and updated. Null: a row that only fills up a
  // step (StepGraphs::Step); slabs and page_levels are null, too, first_slot is 0.
  std::byte* tail = nullptr;
  const ArchivedPages* archives = nullptr;  // [num_banks], attended before the pages; null: none
  const TokenObserver* observer = nullptr;  // null: nobody asks
  // Leading rows whose attention nobody reads, 0 .. num_rows: their K and V are stored as ever, their rows of
  // q and of the output may be anything. REQUIRES: 0 where there is an observer.
  int unwanted_rows = 0;
};

// K, V and Q of one layer for all rows of the step, before the cache has seen them.
struct AttentionStep {
  const PageLayout* layout = nullptr;
  int bank = 0;
  int num_q_heads = 0;  // local; a multiple of layout->num_kv_heads
  float scale = 0;      // 1 / sqrt(head_dim) unless the model says otherwise
  // Sliding window: a query at slot t sees slots > t - window alone (Beltagy et al. 2020, arXiv:2004.05150);
  // 0: all up to t. REQUIRES with a window or a soft cap: no archives, no observers.
  int window = 0;
  float soft_cap = 0;  // score = soft_cap * tanh(score / soft_cap), before the softmax (Gemma 2); 0: none
  Tensor q;            // f32 [rows, num_q_heads * head_dim], after RoPE
  Tensor k;            // f32 [rows, num_kv_heads * head_dim], after RoPE
  Tensor v;            // f32 [rows, num_kv_heads * head_dim]
  Tensor out;          // f32 [rows, num_q_heads * head_dim]
  // Several layers may read one bank, in ascending order (Cross-Layer Attention, arXiv:2405.12981): only the
  // first one encodes pages, all are given its K and V, and tails change with the last one.
  bool first_reader = true;
  bool last_reader = true;
  std::span<const SequenceSlice> sequences;
};

// Tokens of one bank of one sequence that move from its exact pages and tail into archived pages, each head
// its own: what a token policy keeps of a prompt, or a block of recent tokens whose time has come.
struct Compaction {
  const PageLayout* from = nullptr;  // REQUIRES: exact pages: full and identity, every level
  int bank = 0;
  std::byte* const* slabs =
      nullptr;                    // slabs[page * kMaxSlabs + slab], pages 0 .. num_slots / page_tokens - 1
  std::byte* tail = nullptr;      // of slots from the last complete page on; receives what is left
  int num_slots = 0;              // the sequence's, all in the cache already
  const int32_t* keep = nullptr;  // [num_kv_heads][num_kept] slots, ascending for each head
  int num_kept = 0;
  // Where the first num_kept / to->page_tokens pages of kept tokens go, encoded; their sink slab, where a
  // page has one, is written too. Same heads, head_dim and dtype as `from`. The num_kept % to->page_tokens
  // rows that are left (fewer than from->page_tokens) become rows 0, 1, .. of the tail.
  const PageLayout* to = nullptr;
  int to_bank = 0;
  std::byte* const* to_slabs = nullptr;
};

// What a gated MLP does to its gate. tanh GELU: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
// (Hendrycks & Gimpel 2016).
enum class Activation : uint8_t { kSilu, kGeluTanh };

// What one layer gives to attention: q, k and v of the normed rows of x, heads normed where there are weights
// for it, q and k rotated.
struct HeadsStep {
  const float* norm = nullptr;     // [x.cols]
  float epsilon = 0;               // of all norms
  const Linear* weight = nullptr;  // [q.cols + k.cols + v.cols, x.cols]
  const float* bias = nullptr;     // may be null
  const float* q_norm = nullptr;   // [head_dim], of every head; null: none
  const float* k_norm = nullptr;
  const RopeTable* rope = nullptr;
  std::span<const int32_t> positions;        // of the rows
  std::span<const SequenceSlice> sequences;  // whose unwanted rows need no q; empty: all rows do
  Tensor x;
  Tensor normed, qkv;  // for the use of the call: [rows, x.cols], [rows, outputs]; qkv may begin where q does
                       // when there is one row
  Tensor q, k, v;      // written
};

// A gated MLP: y = down(activation(gate) * up), gate and up of the normed rows of x.
struct MlpStep {
  const float* norm = nullptr;  // [x.cols]
  float epsilon = 0;
  const Linear* gate_up = nullptr;  // [2 ffn, x.cols]: gate, up
  const float* gate_up_bias = nullptr;
  Activation activation = Activation::kSilu;
  const Linear* down = nullptr;  // [y.cols, ffn]
  const float* down_bias = nullptr;
  bool accumulate = false;  // y += instead; y may be x then
  Tensor x;
  Tensor normed, both, hidden;  // for the use of the call: [rows, x.cols], [rows, 2 ffn], [rows, ffn]
  Tensor y;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual DType dtype() const = 0;  // of weights, K and V: bf16, or f32 for exactness
  virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;  // 64-byte aligned, zeroed

  // Whether the host may read and write the memory of allocate(), and every call is complete on return.
  virtual bool host_accessible() const = 0;
  // Host -> device memory; `from` may be reused on return.
  virtual void upload(std::span<const std::byte> from, std::byte* to) = 0;
  // Device memory -> host, after everything that was called before; complete on return.
  virtual void download(const std::byte* from, std::span<std::byte> to) = 0;
  virtual void synchronize() = 0;  // returns when everything that was called before is complete
  // Copies of pages beside the steps; null where the host copies pages itself (host_accessible()).
  virtual PageCopies* page_copies() = 0;
  // Decode steps that are recorded once and repeated; null: every call is made every time.
  virtual StepGraphs* step_graphs() { return nullptr; }
  virtual int page_tokens() const = 0;  // that its kernels like best, where a recipe does not say
  // The queue that the calls are ordered on, as the device's own API has it (cudaStream_t); null on hosts.
  virtual void* native_stream() = 0;

  // `weight`: host [out, in] of any DType, row stride `stride` elements; only read during the call.
  virtual std::unique_ptr<Linear> pack_linear(const void* weight, DType dtype, int out, int in,
                                              int64_t stride) = 0;
  // Like pack_linear, but rows stay readable for embed().
  virtual std::unique_ptr<Linear> pack_embedding(const void* weight, DType dtype, int rows, int cols,
                                                 int64_t stride) = 0;
  // Whether matrices of pack_few_bits() stay in few bits; otherwise they are expanded to dtype().
  virtual bool keeps_few_bits() const { return false; }
  // As pack_embedding(), of weights in 8 or 4 bits (kernels/ops/few_bit_weights.h).
  virtual std::unique_ptr<Linear> pack_few_bits(const FewBitMatrix& weight);

  // y[M, out] = x[M, in] W^T (+ bias[out], f32, may be null) (+ y when accumulate).
  virtual void linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
                      const Tensor& y) = 0;
  // y[i] = scale * row (ids[i] - first_row) of the embedding, zeros when outside it (vocabulary-parallel
  // lookup).
  virtual void embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
                     const Tensor& y) = 0;
  // y = x / sqrt(mean(x^2) + epsilon) * weight, per row. In place allowed. (Zhang & Sennrich 2019) Heads are
  // normed as the rows of [rows * heads, head_dim].
  virtual void rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) = 0;
  // Rotates every head of x in place by its row's position: split-half pairs (i, i + n) for i < n =
  // inv_freq.size(), as Hugging Face Llama; features from 2 n on stay. (Su et al. 2021, eq. 34)
  virtual void rope(const RopeTable& table, std::span<const int32_t> positions, const Tensor& x) = 0;
  // y = activation(gate) * up, for gate_up [rows, 2 n] holding gate then up.
  virtual void gated(Activation activation, const Tensor& gate_up, const Tensor& y) = 0;
  // x = cap * tanh(x / cap), in place. (Bello et al. 2016, arXiv:1611.09940, section 3.3) REQUIRES: cap > 0.
  virtual void soft_cap(float cap, const Tensor& x) = 0;
  virtual void add(const Tensor& x, const Tensor& y) = 0;  // y += x
  virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) = 0;
  // y = columns [first, first + y.cols) of x.
  virtual void copy_columns(const Tensor& x, int first, const Tensor& y) = 0;

  // tokens[i], device memory, is drawn from row draws[i].row (draw_token() says how). `logits`: `parts`
  // pieces one after the other, [rows, cols] each, as the ranks of a replica have them: piece p has columns
  // of the tokens p * cols .. below `vocab`, and the rest is padding.
  virtual void draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                           DrawnToken* tokens) = 0;

  // Chains of the operations above, one after the other here. A backend may fuse them; a row's bits depend on
  // that row alone either way.
  virtual void project_heads(const HeadsStep& step);
  virtual void gated_mlp(const MlpStep& step);

  // Writes K and V into the cache, encodes the pages completed by these rows, and attends: a query at
  // position t sees the archived pages, the sink, every page that ends at or before t's page start encoded,
  // and its own page exact up to t — in prefill and decode alike (docs/architecture.md); of all these, under
  // a sliding window, the slots inside it. K and V are rounded to dtype() first. On return the slabs of
  // completed pages and the tails are written; nothing else is kept.
  virtual void attend(const AttentionStep& step) = 0;

  // Encodes chosen tokens into archived pages and leaves the rest of them in the tail. The source pages stay
  // as they are: the caller frees them.
  virtual void compact(const Compaction& compaction) = 0;
};

}  // namespace lowkey::kernels
