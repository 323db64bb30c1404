// A tensor-parallel replica in one process: one model, cache and thread per rank, over loopback collectives.
#pragma once

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "kernels/cpu/cpu_backend.h"
#include "transport/loopback/loopback_comm.h"
#include "worker/model/model.h"

namespace lowkey::testing {

// The cache of one sequence on one rank, in a backend's memory.
class SequenceCache {
 public:
  SequenceCache(const kernels::PageLayout& layout, kernels::Backend& backend)
      : layout_(layout), backend_(backend), tail_(backend.allocate(layout.tail_bytes)) {}

  // The slice of `count` rows that follow what was run before. The arrays live until the next call.
  kernels::SequenceSlice extend(int first_row, int count) {
    const int first = length_;
    length_ += count;
    while (static_cast<int>(slabs_.size()) < length_ / layout_.page_tokens * kernels::kMaxSlabs) add_page();
    return {.first_row = first_row,
            .num_rows = count,
            .first_slot = first,
            .slabs = slabs_.data(),
            .page_levels = page_levels_.data(),
            .tail = tail_->data()};
  }
  int length() const { return length_; }

 private:
  void add_page() {
    const bool first = slabs_.empty();
    page_levels_.push_back(static_cast<uint8_t>(layout_.num_levels));
    for (int slab = 0; slab < kernels::kMaxSlabs; ++slab) {
      const bool used = slab < (first ? layout_.num_slabs() : layout_.num_levels);
      if (used) pages_.push_back(backend_.allocate(layout_.slab_bytes[slab]));
      slabs_.push_back(used ? pages_.back()->data() : nullptr);
    }
  }

  const kernels::PageLayout& layout_;
  kernels::Backend& backend_;
  int length_ = 0;
  std::vector<std::unique_ptr<kernels::Buffer>> pages_;
  std::vector<std::byte*> slabs_;
  std::vector<uint8_t> page_levels_;
  std::unique_ptr<kernels::Buffer> tail_;
};

struct ReplicaOptions {
  int tp = 1;
  int threads = 1;  // of each rank's compute pool
  kernels::DType dtype = kernels::DType::kF32;
  kernels::PageSpec pages;
  worker::WeightStorage weights = worker::WeightStorage::kAuto;
  std::function<std::unique_ptr<kernels::Backend>()> backend;  // of every rank; empty: the CPU's
};

inline kernels::PageSpec q8_pages() {
  return kernels::PageSpec::embedded("q8", 8, 4);
}

// A sequence's new tokens in one step.
struct Rows {
  int sequence = 0;
  std::span<const int32_t> tokens;
  bool all_logits = true;   // or of the last row alone
  bool last_logits = true;  // or of none
};

class Replica {
 public:
  static Result<std::unique_ptr<Replica>> load(const std::filesystem::path& dir,
                                               const ReplicaOptions& options) {
    LOWKEY_ASSIGN(config, worker::ModelConfig::read(dir));
    config.weights = options.weights;
    auto replica = std::make_unique<Replica>();
    auto comms = transport::make_loopback_comms(options.tp);
    for (int rank = 0; rank < options.tp; ++rank) {
      auto backend = options.backend
                         ? options.backend()
                         : kernels::make_cpu_backend({.dtype = options.dtype, .threads = options.threads});
      LOWKEY_ASSIGN(model, worker::Model::load(dir, config, rank, options.tp, *backend));
      LOWKEY_ASSIGN(layout,
                    kernels::PageLayout::make(options.pages, config.cache_shape(options.tp, options.dtype)));
      replica->ranks_.push_back(std::make_unique<Rank>(std::move(backend), std::move(model),
                                                       std::move(layout), std::move(comms[rank])));
    }
    return replica;
  }

  const worker::Model& model(int rank) const { return *ranks_[rank]->model; }
  const kernels::PageLayout& layout(int rank) const { return ranks_[rank]->layout; }

  // What a rank wrote in the last step, [wanted rows][vocab_shard()].
  std::span<const float> shard_logits(int rank) const { return ranks_[rank]->logits; }

  // Adds the rows to their sequences (created on first use) on every rank; the logits of all wanted rows, in
  // order, each of vocab_size, put together from the ranks' slices.
  Result<std::vector<std::vector<float>>> step(std::span<const Rows> work) {
    std::vector<Status> status(ranks_.size());
    std::vector<std::jthread> threads;
    for (size_t rank = 1; rank < ranks_.size(); ++rank)
      threads.emplace_back([&, rank] { status[rank] = ranks_[rank]->run(work); });
    status[0] = ranks_[0]->run(work);
    threads.clear();
    for (const Status& s : status) LOWKEY_TRY(s);
    return collect();
  }

  Result<std::vector<std::vector<float>>> step(int sequence, std::span<const int32_t> tokens,
                                               bool all_logits = true) {
    const Rows rows{sequence, tokens, all_logits};
    return step({&rows, 1});
  }

  // Tokens run so far.
  int length(int sequence) const {
    const auto& caches = ranks_[0]->caches;
    return sequence < static_cast<int>(caches.size()) && caches[sequence] ? caches[sequence]->length() : 0;
  }
  void forget(int sequence) {
    for (auto& rank : ranks_)
      if (sequence < static_cast<int>(rank->caches.size())) rank->caches[sequence].reset();
  }

  // Greedy tokens after `prompt`, which goes in by chunks of `chunk`.
  Result<std::vector<int32_t>> greedy(int sequence, std::span<const int32_t> prompt, int count,
                                      int chunk = 1 << 20) {
    std::vector<int32_t> out;
    std::vector<float> last;
    for (size_t at = 0; at < prompt.size(); at += chunk) {
      LOWKEY_ASSIGN(logits,
                    step(sequence, prompt.subspan(at, std::min<size_t>(chunk, prompt.size() - at)), false));
      last = std::move(logits.back());
    }
    while (true) {
      out.push_back(static_cast<int32_t>(std::ranges::max_element(last) - last.begin()));
      if (static_cast<int>(out.size()) == count) return out;
      LOWKEY_ASSIGN(logits, step(sequence, {&out.back(), 1}, false));
      last = std::move(logits.back());
    }
  }

 private:
  struct Rank {
    Rank(std::unique_ptr<kernels::Backend> b, std::unique_ptr<worker::Model> m, kernels::PageLayout l,
         std::unique_ptr<transport::HostComm> c)
        : backend(std::move(b)),
          model(std::move(m)),
          layout(std::move(l)),
          host_comm(std::move(c)),
          comm(transport::make_staged_comm(*host_comm, *backend)) {}

    Status run(std::span<const Rows> work) {
      std::vector<int32_t> tokens, positions, wanted;
      std::vector<kernels::SequenceSlice> slices;
      for (const Rows& rows : work) {
        if (rows.sequence >= static_cast<int>(caches.size())) caches.resize(rows.sequence + 1);
        auto& cache = caches[rows.sequence];
        if (!cache) cache = std::make_unique<SequenceCache>(layout, *backend);
        const int first = cache->length();
        const int count = static_cast<int>(rows.tokens.size());
        slices.push_back(cache->extend(static_cast<int>(tokens.size()), count));
        for (int i = 0; i < count; ++i) {
          if (rows.all_logits || (rows.last_logits && i == count - 1)) wanted.push_back(static_cast<int32_t>(tokens.size()));
          positions.push_back(first + i);
          tokens.push_back(rows.tokens[i]);
        }
      }
      logits.resize(wanted.size() * model->vocab_shard());
      const worker::Batch batch{tokens, positions, slices, wanted};
      return model->forward(batch, layout, *comm, Deadline::in(std::chrono::seconds(60)), logits);
    }

    std::unique_ptr<kernels::Backend> backend;
    std::unique_ptr<worker::Model> model;
    kernels::PageLayout layout;
    std::unique_ptr<transport::HostComm> host_comm;
    std::unique_ptr<transport::DeviceComm> comm;
    std::vector<std::unique_ptr<SequenceCache>> caches;
    std::vector<float> logits;
  };

  std::vector<std::vector<float>> collect() const {
    const size_t shard = ranks_[0]->model->vocab_shard();
    std::vector<std::vector<float>> rows(ranks_[0]->logits.size() / shard);
    for (size_t row = 0; row < rows.size(); ++row) {
      for (const auto& rank : ranks_)
        rows[row].insert(rows[row].end(), rank->logits.begin() + row * shard,
                         rank->logits.begin() + (row + 1) * shard);
      rows[row].resize(ranks_[0]->model->config().vocab_size);  // the rest is padding
    }
    return rows;
  }

  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace lowkey::testing
