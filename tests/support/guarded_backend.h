// A device that is none: a host backend whose memory can be read at no address that it gives away. The same
// pages of a memory file are mapped twice; buffers name the mapping without access, calls are passed on with
// the addresses of the other one. A host access to device memory is a segmentation fault, at once and always.
// Page copies are as late as their contract allows, so a copy that is not waited for is a wrong one.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/ops/host_buffer.h"
#include "kernels/ops/reference_backend.h"
#include "kvstore/page/offset_allocator.h"

namespace lowkey::testing {

// The two mappings. Thread-safe.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes) : bytes_(bytes), allocator_(bytes) {
    const int file = ::memfd_create("guarded device", MFD_CLOEXEC);
    LOWKEY_CHECK(file >= 0 && ::ftruncate(file, static_cast<off_t>(bytes)) == 0, "a memory file of {}",
                 bytes);
    device_ = map(file, PROT_NONE);
    host_ = map(file, PROT_READ | PROT_WRITE);
    ::close(file);
  }
  ~GuardedMemory() {
    ::munmap(device_, bytes_);
    ::munmap(host_, bytes_);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  std::byte* allocate(size_t bytes) {
    std::lock_guard lock(mutex_);
    const auto offset = allocator_.allocate(std::max<size_t>(bytes, 1));
    LOWKEY_CHECK(offset, "guarded memory is full: {} bytes", bytes);
    std::memset(host_ + *offset, 0, bytes);
    return device_ + *offset;
  }
  void free(const std::byte* device) {
    std::lock_guard lock(mutex_);
    allocator_.free(static_cast<uint64_t>(device - device_));
  }

  // The address that can be read; null stays null. A host address is a broken invariant.
  template <class T>
  T* reach(T* device) const {
    if (device == nullptr) return nullptr;
    const auto* at = reinterpret_cast<const std::byte*>(device);
    LOWKEY_CHECK(at >= device_ && at < device_ + bytes_, "an address of the host given to the device");
    return reinterpret_cast<T*>(host_ + (at - device_));
  }

 private:
  std::byte* map(int file, int protection) const {
    void* memory = ::mmap(nullptr, bytes_, protection, MAP_SHARED, file, 0);
    LOWKEY_CHECK(memory != MAP_FAILED, "cannot map {} bytes", bytes_);
    return static_cast<std::byte*>(memory);
  }

  const size_t bytes_;
  std::mutex mutex_;
  kvstore::OffsetAllocator allocator_;
  std::byte* device_ = nullptr;
  std::byte* host_ = nullptr;
};

class GuardedCopies final : public kernels::PageCopies {
 public:
  explicit GuardedCopies(const GuardedMemory& memory) : memory_(memory) {}

  std::unique_ptr<kernels::Buffer> staging(size_t bytes) override {
    return std::make_unique<kernels::HostBuffer>(bytes);
  }
  std::shared_ptr<kernels::CopyTicket> begin_download(std::span<const Piece> pieces) override {
    std::lock_guard lock(mutex_);
    late_.emplace_back(pieces.begin(), pieces.end());
    ++downloads_;
    return std::make_shared<Ticket>(*this, begun_++);
  }
  void fence() override {
    std::lock_guard lock(mutex_);
    copy_until(begun_);
  }
  Status upload(std::span<const Piece> pieces) override {
    std::lock_guard lock(mutex_);
    copy_until(begun_);
    for (const Piece& piece : pieces) std::memcpy(memory_.reach(piece.device), piece.host, piece.bytes);
    ++uploads_;
    return {};
  }

  size_t downloads() const { return count(downloads_); }
  size_t uploads() const { return count(uploads_); }

 private:
  class Ticket final : public kernels::CopyTicket {
   public:
    Ticket(GuardedCopies& copies, size_t number) : copies_(copies), number_(number) {}
    Status wait() override {
      std::lock_guard lock(copies_.mutex_);
      copies_.copy_until(number_ + 1);
      return {};
    }

   private:
    GuardedCopies& copies_;
    const size_t number_;
  };

  void copy_until(size_t end) {
    for (; done_ < end; ++done_) {
      for (const Piece& piece : late_.front())
        std::memcpy(piece.host, memory_.reach(piece.device), piece.bytes);
      late_.pop_front();
    }
  }
  size_t count(const size_t& counter) const {
    std::lock_guard lock(mutex_);
    return counter;
  }

  const GuardedMemory& memory_;
  mutable std::mutex mutex_;
  std::deque<std::vector<Piece>> late_;
  size_t begun_ = 0, done_ = 0, downloads_ = 0, uploads_ = 0;
};

class GuardedBackend final : public kernels::Backend {
 public:
  using Tensor = kernels::Tensor;
  using Linear = kernels::Linear;

  explicit GuardedBackend(std::unique_ptr<kernels::Backend> inner, size_t bytes = size_t{256} << 20)
      : inner_(std::move(inner)), memory_(bytes) {}

  kernels::DType dtype() const override { return inner_->dtype(); }
  std::unique_ptr<kernels::Buffer> allocate(size_t bytes) override {
    return std::make_unique<GuardedBuffer>(memory_, bytes);
  }
  bool host_accessible() const override { return false; }
  void upload(std::span<const std::byte> from, std::byte* to) override {
    if (!from.empty()) std::memcpy(memory_.reach(to), from.data(), from.size());
  }
  void download(const std::byte* from, std::span<std::byte> to) override {
    if (!to.empty()) std::memcpy(to.data(), memory_.reach(from), to.size());
  }
  void synchronize() override {}
  GuardedCopies* page_copies() override { return &copies_; }
  int page_tokens() const override { return 64; }
  void* native_stream() override { return nullptr; }

  std::unique_ptr<Linear> pack_linear(const void* weight, kernels::DType dtype, int out, int in,
                                      int64_t stride) override {
    return inner_->pack_linear(weight, dtype, out, in, stride);
  }
  std::unique_ptr<Linear> pack_embedding(const void* weight, kernels::DType dtype, int rows, int cols,
                                         int64_t stride) override {
    return inner_->pack_embedding(weight, dtype, rows, cols, stride);
  }
  bool keeps_few_bits() const override { return inner_->keeps_few_bits(); }
  std::unique_ptr<Linear> pack_few_bits(const kernels::FewBitMatrix& weight) override {
    return inner_->pack_few_bits(weight);
  }
  void linear(const Linear& weight, const Tensor& x, const float* bias, bool accumulate,
              const Tensor& y) override {
    inner_->linear(weight, reach(x), memory_.reach(bias), accumulate, reach(y));
  }
  void embed(const Linear& embedding, std::span<const int32_t> ids, int first_row, float scale,
             const Tensor& y) override {
    inner_->embed(embedding, ids, first_row, scale, reach(y));
  }
  void rms_norm(const Tensor& x, const float* weight, float epsilon, const Tensor& y) override {
    inner_->rms_norm(reach(x), memory_.reach(weight), epsilon, reach(y));
  }
  void rope(const kernels::RopeTable& table, std::span<const int32_t> positions, const Tensor& x) override {
    inner_->rope(table, positions, reach(x));
  }
  void gated(kernels::Activation activation, const Tensor& gate_up, const Tensor& y) override {
    inner_->gated(activation, reach(gate_up), reach(y));
  }
  void soft_cap(float cap, const Tensor& x) override { inner_->soft_cap(cap, reach(x)); }
  void add(const Tensor& x, const Tensor& y) override { inner_->add(reach(x), reach(y)); }
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) override {
    inner_->gather_rows(reach(x), rows, reach(y));
  }
  void copy_columns(const Tensor& x, int first, const Tensor& y) override {
    inner_->copy_columns(reach(x), first, reach(y));
  }
  void draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const kernels::TokenDraw> draws,
                   kernels::DrawnToken* tokens) override {
    ++draws_;
    inner_->draw_tokens(reach(logits), parts, vocab, draws, memory_.reach(tokens));
  }
  size_t draws() const { return draws_; }  // calls of draw_tokens()

  void attend(const kernels::AttentionStep& step) override {
    kernels::AttentionStep mine = step;
    mine.q = reach(step.q), mine.k = reach(step.k), mine.v = reach(step.v), mine.out = reach(step.out);
    std::vector<kernels::SequenceSlice> slices(step.sequences.begin(), step.sequences.end());
    std::deque<std::vector<std::byte*>> slabs;
    std::deque<std::vector<kernels::ArchivedPages>> archives;
    std::deque<kernels::TokenObserver> observers;
    const int banks = step.layout->num_banks;
    for (kernels::SequenceSlice& slice : slices) {
      const int pages = (slice.first_slot + slice.num_rows) / step.layout->page_tokens;
      slice.slabs = reach(slice.slabs, pages, slabs);
      slice.tail = memory_.reach(slice.tail);
      if (slice.archives != nullptr) {
        std::vector<kernels::ArchivedPages>& of =
            archives.emplace_back(slice.archives, slice.archives + banks);
        for (kernels::ArchivedPages& bank : of) bank.slabs = reach(bank.slabs, bank.num_pages, slabs);
        slice.archives = of.data();
      }
      if (slice.observer != nullptr) slice.observer = &observers.emplace_back(reach(*slice.observer));
    }
    mine.sequences = slices;
    inner_->attend(mine);
  }
  void compact(const kernels::Compaction& compaction) override {
    std::deque<std::vector<std::byte*>> slabs;
    kernels::Compaction mine = compaction;
    mine.slabs = reach(mine.slabs, mine.num_slots / mine.from->page_tokens, slabs);
    mine.tail = memory_.reach(mine.tail);
    mine.to_slabs = reach(mine.to_slabs, mine.num_kept / mine.to->page_tokens, slabs);
    inner_->compact(mine);
  }

 private:
  class GuardedBuffer final : public kernels::Buffer {
   public:
    GuardedBuffer(GuardedMemory& memory, size_t bytes)
        : memory_(memory), size_(bytes), data_(memory.allocate(bytes)) {}
    ~GuardedBuffer() override { memory_.free(data_); }
    std::byte* data() override { return data_; }
    size_t size() const override { return size_; }

   private:
    GuardedMemory& memory_;
    const size_t size_;
    std::byte* const data_;
  };

  // The slabs of so many pages; the array lives in `arrays`.
  std::byte* const* reach(std::byte* const* slabs, int pages,
                          std::deque<std::vector<std::byte*>>& arrays) const {
    std::vector<std::byte*>& of = arrays.emplace_back();
    for (int i = 0; i < pages * kernels::kMaxSlabs; ++i) of.push_back(memory_.reach(slabs[i]));
    return of.data();
  }
  kernels::TokenObserver reach(kernels::TokenObserver observer) const {
    for (float** sums : {&observer.column_sums, &observer.window_sums, &observer.key_norms})
      *sums = memory_.reach(*sums);
    return observer;
  }
  Tensor reach(Tensor x) const {
    x.data = memory_.reach(static_cast<std::byte*>(x.data));
    return x;
  }

  const std::unique_ptr<kernels::Backend> inner_;
  GuardedMemory memory_;
  GuardedCopies copies_{memory_};
  size_t draws_ = 0;
};

}  // namespace lowkey::testing
