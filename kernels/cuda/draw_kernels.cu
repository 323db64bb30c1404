#include "kernels/cuda/draw_kernels.h"

#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

using Mass = unsigned long long;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr double kOne = 17592186044416.0;  // 2^44
// Bits of a logit that one histogram tells apart, from the top.
constexpr int kDigits = 3;
constexpr int kFirstBits = 10, kMoreBits = 11;
static_assert(kFirstBits + (kDigits - 1) * kMoreBits == 32);
constexpr int kFirstBins = 1 << kFirstBits, kMoreBins = 1 << kMoreBits;

// Floats in their order as unsigned integers; both zeros are the same.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = as_bits(x == 0.0f ? 0.0f : x);
  if (x != x) return ~0u;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(uint32_t key) {
  return as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

struct Histogram {
  Mass* mass;
  int* count;
  int bins;

  __device__ void clear() const {
    for (int i = threadIdx.x; i < bins; i += kThreads) mass[i] = count[i] = 0;
  }
};

// Of all threads, in the same order always.
template <class T, class Combine>
__device__ T reduce(T x, Mass* scratch, const Combine& combine) {
  static_assert(sizeof(T) == sizeof(Mass));
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x = combine(x, shuffle_xor(x, mask));
  T* parts = reinterpret_cast<T*>(scratch);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  x = parts[0];
  for (int i = 1; i < kWarps; ++i) x = combine(x, parts[i]);
  return x;
}

// Where a running sum over tokens, best first, reaches what is wanted.
struct Cut {
  uint32_t key;  // of the last token's logit
  int among;     // so many of the tokens with this logit belong to it
  Mass mass;     // of all that do
};

// One row and its block.
struct Row {
  LogitPieces logits;
  int64_t first;  // element of token 0
  double temperature, min_p, maximum;
  Histogram heads, digits;
  Mass* scratch;  // [kWarps]
  Mass* found;    // [4]

  __device__ float logit(int id) const {
    const float* row = logits.data + first;
    return id < logits.cols ? row[id] : row[id / logits.cols * logits.piece_stride + id % logits.cols];
  }
  __device__ Mass weight(float x) const {
    const double w = exp((double{x} - maximum) / temperature);
    return w < min_p ? 0 : static_cast<Mass>(w * kOne + 0.5);
  }

  // Tokens whose highest bits are `prefix`, by the next ones.
  __device__ void fill(const Histogram& histogram, int known, uint32_t prefix) const {
    histogram.clear();
    __syncthreads();
    const int shift = 32 - known - (histogram.bins == kFirstBins ? kFirstBits : kMoreBits);
    for (int id = threadIdx.x; id < logits.vocab; id += kThreads) {
      const float x = logit(id);
      const uint32_t key = ordered(x);
      if (known > 0 && key >> (32 - known) != prefix) continue;
      const uint32_t bin = key >> shift & static_cast<uint32_t>(histogram.bins - 1);
      if (const Mass w = weight(x); w > 0) add_atomically(&histogram.mass[bin], w);
      add_atomically(&histogram.count[bin], 1);
    }
    __syncthreads();
  }

  // The bin, from the last one down, in which the sum of masses (or counts) reaches `wanted`, which becomes
  // what is wanted of that bin alone; `mass`: of those above it, added.
  __device__ int find_bin(const Histogram& histogram, bool by_count, Mass* wanted, Mass* mass) const {
    const int lane = threadIdx.x % kWarpSize, share = histogram.bins / kWarpSize;
    const auto measure = [&](int bin) {
      return by_count ? static_cast<Mass>(histogram.count[bin]) : histogram.mass[bin];
    };
    if (threadIdx.x < kWarpSize) {
      const int top = histogram.bins - 1 - lane * share;
      Mass own = 0, own_mass = 0;
      for (int i = 0; i < share; ++i) {
        own += measure(top - i);
        own_mass += histogram.mass[top - i];
      }
      Mass before = own, mass_before = own_mass;  // then of this lane and those below it
      for (int step = 1; step < kWarpSize; step *= 2) {
        const Mass more = shuffle(before, lane >= step ? lane - step : lane);
        const Mass more_mass = shuffle(mass_before, lane >= step ? lane - step : lane);
        if (lane >= step) before += more, mass_before += more_mass;
      }
      before -= own, mass_before -= own_mass;
      if (before < *wanted && before + own >= *wanted) {
        int bin = top;
        for (; before + measure(bin) < *wanted; --bin) {
          before += measure(bin);
          mass_before += histogram.mass[bin];
        }
        found[0] = static_cast<Mass>(bin);
        found[1] = before;
        found[2] = mass_before;
      }
    }
    __syncthreads();
    const int bin = static_cast<int>(found[0]);
    *wanted -= found[1];
    *mass += found[2];
    __syncthreads();
    return bin;
  }

  // REQUIRES: heads is filled, 1 <= wanted <= the sum of all.
  __device__ Cut descend(bool by_count, Mass wanted) const {
    Cut cut{.key = 0, .among = 0, .mass = 0};
    int known = kFirstBits, bin = find_bin(heads, by_count, &wanted, &cut.mass);
    cut.key = static_cast<uint32_t>(bin);
    for (int digit = 1; digit < kDigits; ++digit) {
      fill(digits, known, cut.key);
      bin = find_bin(digits, by_count, &wanted, &cut.mass);
      known += kMoreBits;
      cut.key = cut.key << kMoreBits | static_cast<uint32_t>(bin);
    }
    const Mass each = digits.mass[bin] / static_cast<Mass>(digits.count[bin]);  // equal logits
    cut.among = static_cast<int>(by_count ? wanted : (wanted + each - 1) / each);
    cut.mass += static_cast<Mass>(cut.among) * each;
    __syncthreads();
    return cut;
  }

  // The token at which the sum of `measure(logit)` in the order of ids reaches `wanted`.
  template <class Measure>
  __device__ int find_in_order(Mass wanted, const Measure& measure) const {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int share = (logits.vocab + kThreads - 1) / kThreads * kWarpSize;
    const int begin = warp * share, end = min(begin + share, logits.vocab);
    Mass sum = 0;
    for (int id = begin + lane; id < end; id += kWarpSize) sum += measure(logit(id));
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    __syncthreads();
    if (lane == 0) scratch[warp] = sum;
    __syncthreads();
    Mass before = 0;
    for (int i = 0; i < warp; ++i) before += scratch[i];
    if (before < wanted && before + sum >= wanted) {
      for (int first = begin; first < end; first += kWarpSize) {
        const Mass own = first + lane < end ? measure(logit(first + lane)) : 0;
        Mass up_to = own;
        for (int step = 1; step < kWarpSize; step *= 2) {
          const Mass more = shuffle(up_to, lane >= step ? lane - step : lane);
          if (lane >= step) up_to += more;
        }
        if (own > 0 && before + up_to >= wanted && before + up_to - own < wanted)
          found[3] = static_cast<Mass>(first + lane);
        before += shuffle(up_to, kWarpSize - 1);
        if (before >= wanted) break;
      }
    }
    __syncthreads();
    return static_cast<int>(found[3]);
  }

  // The first mass at which a running sum passes `uniform` of `total`.
  static __device__ Mass target_of(double uniform, Mass total) {
    return min(total, static_cast<Mass>(uniform * static_cast<double>(total)) + 1);
  }

  __device__ int pick(double uniform) const {
    Mass sum = 0;
    for (int id = threadIdx.x; id < logits.vocab; id += kThreads) sum += weight(logit(id));
    const Mass total = reduce(sum, scratch, [](Mass a, Mass b) { return a + b; });
    return find_in_order(target_of(uniform, total), [&](float x) { return weight(x); });
  }

  __device__ int pick_best_first(const TokenDraw& draw) const {
    fill(heads, 0, 0);
    Mass total = 0;
    if (draw.top_k > 0 && draw.top_k < logits.vocab) {
      total = descend(true, static_cast<Mass>(draw.top_k)).mass;
    } else {
      for (int i = 0; i < heads.bins; ++i) total += heads.mass[i];
    }
    if (draw.top_p < 1) {
      const auto wanted = static_cast<Mass>(ceil(draw.top_p * static_cast<double>(total)));
      total = descend(false, min(total, max(Mass{1}, wanted))).mass;
    }
    const Cut cut = descend(false, target_of(draw.uniform, total));
    return find_in_order(static_cast<Mass>(cut.among),
                         [&](float x) { return static_cast<Mass>(ordered(x) == cut.key); });
  }
};

// Grid: (draw).
__global__ void __launch_bounds__(kThreads, 1)
    draw_tokens(LogitPieces logits, const TokenDraw* draws, DrawnToken* tokens) {
  LOWKEY_SHARED(Mass, shared);
  const TokenDraw draw = draws[blockIdx.x];
  Row row{.logits = logits,
          .first = int64_t{draw.row} * logits.cols,
          .temperature = draw.temperature,
          .min_p = draw.min_p,
          .maximum = 0,
          .heads = {shared, nullptr, kFirstBins},
          .digits = {shared + kFirstBins, nullptr, kMoreBins},
          .scratch = shared + kFirstBins + kMoreBins,
          .found = shared + kFirstBins + kMoreBins + kWarps};
  row.heads.count = reinterpret_cast<int*>(row.found + 4);
  row.digits.count = row.heads.count + kFirstBins;

  // The best token: the largest logit, the lowest id. What is no number is larger than all.
  Mass best = 0;
  for (int id = threadIdx.x; id < logits.vocab; id += kThreads)
    best = max(best,
               static_cast<Mass>(ordered(row.logit(id))) << 32 | (0xffffffffu - static_cast<uint32_t>(id)));
  best = reduce(best, row.scratch, [](Mass a, Mass b) { return max(a, b); });
  const float largest = from_ordered(static_cast<uint32_t>(best >> 32));
  if (best == 0 || !(largest > -INFINITY && largest < INFINITY)) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = {.token = -1, .logprob = 0};
    return;
  }
  row.maximum = largest;
  const bool filtered = (draw.top_k > 0 && draw.top_k < logits.vocab) || draw.top_p < 1;
  const int token = draw.temperature == 0 ? static_cast<int>(0xffffffffu - static_cast<uint32_t>(best))
                    : filtered            ? row.pick_best_first(draw)
                                          : row.pick(draw.uniform);
  DrawnToken drawn{.token = token, .logprob = 0};
  if (draw.logprob != 0) {
    double sum = 0;
    for (int id = threadIdx.x; id < logits.vocab; id += kThreads)
      sum += exp(double{row.logit(id)} - row.maximum);
    sum = reduce(sum, row.scratch, [](double a, double b) { return a + b; });
    drawn.logprob = static_cast<float>(row.logit(token) - (row.maximum + log(sum)));
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = drawn;
}

}  // namespace

void launch_draw_tokens(cudaStream_t stream, const LogitPieces& logits, const TokenDraw* draws, int num_draws,
                        DrawnToken* tokens) {
  constexpr size_t kBytes =
      (kFirstBins + kMoreBins) * (sizeof(Mass) + sizeof(int)) + (kWarps + 4) * sizeof(Mass);
  launch(draw_tokens, {dim3(num_draws), dim3(kThreads), kBytes}, stream, logits, draws, tokens);
}

}  // namespace lowkey::kernels::cuda
