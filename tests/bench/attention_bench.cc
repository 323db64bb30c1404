// attention_bench [--threads N] [--json FILE] [--only SHAPE]: decode attention of one layer over cold pages
// in every format, in bytes of pages per second beside what the machine can read at best, and in tokens per
// second beside bf16 pages. Formats of one shape are measured in turns, best of several rounds each. Prints
// `name measured target pass|fail`, then everything as one line of JSON.
#include <sys/mman.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/page/page_codec.h"
#include "tests/bench/floors.h"

namespace lowkey::testing {
namespace {

using namespace kernels;

constexpr int kBanks = 16;
constexpr int kContext = 4096;  // tokens of a sequence
constexpr int kBatch = 4;       // sequences of a step
constexpr size_t kColdBytes = size_t{160}
                              << 20;  // at least 4 times the L3 caches we have met on such machines
constexpr int kRounds = 7;
constexpr int kHotCalls = 30;

struct Options {
  int threads = 2;
  std::string json_file, only;
};

struct Shape {
  const char* name;
  int q_heads, kv_heads, dim;
};

// Bits of each group of 16 features, first to last quarter of the vector, and level.
using Quarters = std::array<std::array<uint8_t, kMaxLevels>, 4>;

struct Format {
  const char* name;
  bool full;
  bool basis;
  int levels;
  Quarters key, value;
};

constexpr std::array<uint8_t, kMaxLevels> k0{}, k2{2}, k4{4}, k8{8}, k22{2, 2}, k44{4, 4}, k02{0, 2};

const Format kFormats[] = {
    {"bf16", true, false, 1, {}, {}},
    {"4bit", false, false, 1, {k4, k4, k4, k4}, {k4, k4, k4, k4}},
    {"2bit", false, false, 1, {k2, k2, k2, k2}, {k2, k2, k2, k2}},
    {"2+2bit", false, false, 2, {k22, k22, k22, k22}, {k22, k22, k22, k22}},
    {"8bit", false, false, 1, {k8, k8, k8, k8}, {k8, k8, k8, k8}},
    // Mixes as budgets choose them, with a basis.
    {"8422_4420", false, true, 1, {k8, k4, k2, k2}, {k4, k4, k2, k0}},
    {"8422_4420_levels", false, true, 2, {k44, k22, k02, k02}, {k22, k22, k02, k0}},
    {"4220_4220", false, true, 1, {k4, k2, k2, k0}, {k4, k2, k2, k0}},
};

std::vector<float> normal_values(size_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& x : values) x = normal(random);
  return values;
}

PageLayout make_layout(const Shape& shape, const Format& format, int banks) {
  PageSpec spec{.num_levels = format.levels};
  for (VectorSpec* vector : {&spec.key, &spec.value}) {
    if (format.full) break;
    const Quarters& bits = vector == &spec.key ? format.key : format.value;
    vector->quantizer = Quantizer::kEmbedded;
    const int groups = shape.dim / kGroupFeatures;
    for (int g = 0; g < groups; ++g) vector->bits.push_back(bits[g * 4 / groups]);
    if (!format.basis) continue;
    while (vector->bits.back() == k0) vector->bits.pop_back();
    const size_t kept = vector->bits.size() * kGroupFeatures;
    vector->encode = normal_values(kept * shape.dim);
    for (float& x : vector->encode) x /= std::sqrt(static_cast<float>(shape.dim));
    vector->decode = vector->encode;
    vector->scale.assign(kept, 1.0f);
  }
  return PageLayout::make(spec, {banks, shape.kv_heads, shape.dim, DType::kBf16}).value();
}

// Zeroed memory on huge pages.
class HugeMemory {
 public:
  explicit HugeMemory(size_t bytes) : bytes_((bytes + kHuge - 1) / kHuge * kHuge + kHuge) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LOWKEY_CHECK(memory_ != MAP_FAILED, "no {} bytes", bytes_);
    ::madvise(memory_, bytes_, MADV_HUGEPAGE);
  }
  ~HugeMemory() { ::munmap(memory_, bytes_); }
  HugeMemory(const HugeMemory&) = delete;
  std::byte* data() const {
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory_) + kHuge - 1) / kHuge * kHuge);
  }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  size_t bytes_;
  void* memory_;
};

// Sequences of one shape in one format. All pages have the same content; where they are is what counts.
class Cache {
 public:
  // context: tokens of complete pages of a sequence; room: tokens that may be added.
  Cache(const Shape& shape, const Format& format, int threads, int banks, int sequences, int context,
        int room)
      : shape_(shape),
        layout_(make_layout(shape, format, banks)),
        backend_(make_cpu_backend({.dtype = DType::kBf16, .threads = threads})),
        context_(context) {
    const size_t pages = static_cast<size_t>(context + room) / layout_.page_tokens;
    const size_t per_page = layout_.slab_bytes[0] + layout_.slab_bytes[1] + layout_.slab_bytes[2];
    memory_ = std::make_unique<HugeMemory>(per_page * pages * sequences);
    std::byte* next = memory_->data();
    slabs_.resize(sequences);
    page_levels_.assign(pages, static_cast<uint8_t>(layout_.num_levels));
    for (int level = 0; level < layout_.num_levels; ++level) {  // level-major, as pools have them
      for (auto& slabs : slabs_) {
        slabs.resize(pages * kMaxSlabs);
        for (size_t page = 0; page < pages; ++page) {
          slabs[page * kMaxSlabs + level] = next;
          next += layout_.slab_bytes[level];
        }
      }
    }
    encode_first_page();
    for (auto& slabs : slabs_) {
      for (size_t page = 0; page < pages; ++page) {
        for (int level = 0; level < layout_.num_levels; ++level) {
          std::byte* to = slabs[page * kMaxSlabs + level];
          if (to != slabs_[0][level]) std::memcpy(to, slabs_[0][level], layout_.slab_bytes[level]);
        }
      }
    }
    tails_.resize(sequences, std::vector<std::byte>(layout_.tail_bytes));
  }

  // Bytes of one bank's codes and norms, per token.
  double bytes_per_token() const {
    size_t bytes = 0;
    for (int head = 0; head < shape_.kv_heads; ++head) {
      for (Side side : {Side::kKey, Side::kValue}) {
        const VectorLayout& vector = layout_.vector(0, side, head);
        bytes += size_t{2} * vector.num_scalars * layout_.page_tokens;
        for (int i = 0; i < vector.num_planes; ++i) bytes += layout_.planes[vector.first_plane + i].bytes;
      }
    }
    return static_cast<double>(bytes) / layout_.page_tokens;
  }

  // `rows` tokens are added to each of sequences [first, first + count), in one bank.
  void attend(int bank, int first, int count, int rows) {
    const int total = count * rows;
    if (rows_ != total) {
      rows_ = total;
      q_ = normal_values(static_cast<size_t>(total) * shape_.q_heads * shape_.dim);
      k_ = v_ = normal_values(static_cast<size_t>(total) * shape_.kv_heads * shape_.dim);
      out_.resize(q_.size());
    }
    slices_.clear();
    for (int s = 0; s < count; ++s) {
      slices_.push_back({.first_row = s * rows,
                         .num_rows = rows,
                         .first_slot = context_,
                         .slabs = slabs_[first + s].data(),
                         .page_levels = page_levels_.data(),
                         .tail = tails_[first + s].data()});
    }
    AttentionStep step{.layout = &layout_,
                       .bank = bank,
                       .num_q_heads = shape_.q_heads,
                       .scale = 1 / std::sqrt(static_cast<float>(shape_.dim)),
                       .q = {q_.data(), total, shape_.q_heads * shape_.dim},
                       .k = {k_.data(), total, shape_.kv_heads * shape_.dim},
                       .v = {v_.data(), total, shape_.kv_heads * shape_.dim},
                       .out = {out_.data(), total, shape_.q_heads * shape_.dim},
                       .sequences = slices_};
    backend_->attend(step);
  }

  // Seconds of a decode step's attention per token of context and bank, over all sequences and banks.
  double decode_seconds(int banks) {
    const auto begin = std::chrono::steady_clock::now();
    const int sequences = static_cast<int>(slabs_.size()), batch = std::min(kBatch, sequences);
    for (int first = 0; first + batch <= sequences; first += batch) {
      for (int bank = 0; bank < banks; ++bank) attend(bank, first, batch, 1);
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    return time.count() / (static_cast<double>(sequences) * banks * context_);
  }

 private:
  void encode_first_page() {
    const auto values = normal_values(static_cast<size_t>(layout_.page_tokens) * shape_.dim);
    std::vector<uint16_t> rows(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &values[i], 4);
      rows[i] = static_cast<uint16_t>(bits >> 16);
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(rows.data());
    for (const VectorLayout& vector : layout_.vectors) {
      encode_vector(layout_, vector, {&bytes, 1}, {slabs_[0].data()});
    }
  }

  Shape shape_;
  PageLayout layout_;
  std::unique_ptr<Backend> backend_;
  int context_;
  std::unique_ptr<HugeMemory> memory_;
  std::vector<std::vector<std::byte*>> slabs_;
  std::vector<std::vector<std::byte>> tails_;
  std::vector<uint8_t> page_levels_;
  std::vector<SequenceSlice> slices_;
  std::vector<float> q_, k_, v_, out_;
  int rows_ = 0;
};

struct Measured {
  double seconds = 1e9;  // per token of context and bank, cold
  double hot = 1e9;      // the same from cache: one bank of one sequence, again and again
  double bytes = 0;
};

constexpr Shape kShapes[] = {
    {"d64_q1", 8, 8, 64}, {"d128_q1", 8, 8, 128}, {"135M", 9, 3, 64}, {"1B", 32, 8, 64}};

// What a format must reach, as a multiple of bf16 pages' tokens per second and as a share of the best read.
struct Target {
  const char* format;
  double one_query_ratio, one_query_share;  // 0: none
  double ratio, share;                      // 3 or 4 queries per KV head
};

constexpr Target kTargets[] = {
    {"bf16", 0, 0.5, 0, 0.5},  {"4bit", 3, 0.55, 2.3, 0.35}, {"2bit", 4, 0, 2.5, 0},
    {"8bit", 1, 0, 1, 0},      {"8422_4420", 1, 0, 1, 0},    {"8422_4420_levels", 1, 0, 1, 0},
    {"4220_4220", 1, 0, 1, 0},
};

class Report {
 public:
  void line(const std::string& name, double measured, double at_least) {
    if (at_least == 0) return;
    std::printf("%s %.3f >=%.3g %s\n", name.c_str(), measured, at_least,
                measured >= at_least ? "pass" : "fail");
    lines_.push_back({{"name", name}, {"measured", measured}, {"target", at_least}});
  }
  boost::json::array lines_;
};

// Every format of one shape, cold and from cache, in turns.
class ShapeBench {
 public:
  ShapeBench(const Shape& shape, int threads) : shape_(shape), threads_(threads) {
    for (const Format& format : kFormats) {
      const double bytes = Cache(shape, format, 1, 1, 1, 32, 0).bytes_per_token();
      const double batch_bytes = bytes * kBanks * kContext * kBatch;
      const int sequences = kBatch * static_cast<int>(1 + static_cast<double>(kColdBytes) / batch_bytes);
      cold_.push_back(std::make_unique<Cache>(shape, format, threads, kBanks, sequences, kContext, 0));
      hot_.push_back(std::make_unique<Cache>(shape, format, threads, 1, 1, kContext, 0));
      measured_.push_back({.bytes = bytes});
    }
  }

  void measure() {
    for (int round = 0; round < kRounds; ++round) {
      best_read_ = std::max(best_read_, best_read_bandwidth(threads_));
      for (size_t i = 0; i < measured_.size(); ++i) {
        measured_[i].seconds = std::min(measured_[i].seconds, cold_[i]->decode_seconds(kBanks));
        for (int j = 0; j < kHotCalls; ++j)
          measured_[i].hot = std::min(measured_[i].hot, hot_[i]->decode_seconds(1));
      }
    }
  }

  boost::json::object report(Report& report) const {
    boost::json::object found{{"best_read", best_read_}};
    std::printf("%s: %d query heads, %d KV heads of %d, best read %.1f GB/s\n", shape_.name, shape_.q_heads,
                shape_.kv_heads, shape_.dim, best_read_ * 1e-9);
    const bool one_query = shape_.q_heads == shape_.kv_heads;
    for (size_t i = 0; i < measured_.size(); ++i) {
      const Measured& m = measured_[i];
      const double rate = m.bytes / m.seconds, share = rate / best_read_;
      const double ratio = measured_[0].seconds / m.seconds, ceiling = m.bytes / m.hot;
      std::printf(
          "  %-18s %5.0f bytes a token: %6.2f GB/s cold (%.2f of best read), %6.2f from cache; %5.2fx bf16\n",
          kFormats[i].name, m.bytes, rate * 1e-9, share, ceiling * 1e-9, ratio);
      found[kFormats[i].name] = {
          {"bytes", m.bytes}, {"cold", rate}, {"cache", ceiling}, {"over_bf16", ratio}};
      for (const Target& target : kTargets) {
        if (std::strcmp(target.format, kFormats[i].name) != 0) continue;
        const std::string name = std::string("attention_") + shape_.name + "_" + target.format;
        report.line(name + "_over_bf16", ratio, one_query ? target.one_query_ratio : target.ratio);
        report.line(name + "_over_best_read", share, one_query ? target.one_query_share : target.share);
      }
    }
    std::fflush(stdout);
    return found;
  }

 private:
  Shape shape_;
  int threads_;
  double best_read_ = 0;
  std::vector<Measured> measured_;
  std::vector<std::unique_ptr<Cache>> cold_, hot_;
};

int run(const Options& options) {
  boost::json::object found;
  Report report;
  for (const Shape& shape : kShapes) {
    if (!options.only.empty() && options.only != shape.name) continue;
    ShapeBench bench(shape, options.threads);
    bench.measure();
    found[shape.name] = bench.report(report);
  }
  found["lines"] = report.lines_;
  const std::string text = boost::json::serialize(found);
  std::printf("%s\n", text.c_str());
  if (!options.json_file.empty()) std::ofstream(options.json_file) << text << '\n';
  return 0;
}

}  // namespace
}  // namespace lowkey::testing

int main(int argc, char** argv) {
  lowkey::testing::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) options.threads = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--json") == 0) options.json_file = argv[i + 1];
    if (std::strcmp(argv[i], "--only") == 0) options.only = argv[i + 1];
  }
  return lowkey::testing::run(options);
}
