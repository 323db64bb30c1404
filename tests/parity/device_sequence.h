// Pages, tails and steps of attend() in a backend's own memory, whatever that is.
#pragma once

#include "tests/unit/kernels/cpu/attention_support.h"

namespace lowkey::kernels::test {

// Bytes in a backend's memory with guard bytes on both sides.
class GuardedBytes {
 public:
  GuardedBytes(Backend& backend, const std::vector<std::byte>& content)
      : backend_(backend), size_(content.size()) {
    std::vector<std::byte> image(size_ + 2 * kGuard, kPattern);
    std::copy(content.begin(), content.end(), image.begin() + kGuard);
    buffer_ = backend.allocate(image.size());
    backend.upload(image, buffer_->data());
  }
  std::byte* data() const { return buffer_->data() + kGuard; }
  // The content; fails the test where a guard byte was written.
  std::vector<std::byte> read() const {
    std::vector<std::byte> image(size_ + 2 * kGuard);
    backend_.download(buffer_->data(), image);
    for (size_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(image[i], kPattern) << "byte " << i << " before " << size_;
      EXPECT_EQ(image[kGuard + size_ + i], kPattern) << "byte " << i << " after " << size_;
    }
    return {image.begin() + kGuard, image.begin() + static_cast<ptrdiff_t>(kGuard + size_)};
  }

 private:
  static constexpr size_t kGuard = 64;  // keeps the alignment of slabs
  static constexpr std::byte kPattern{0x5a};
  Backend& backend_;
  size_t size_;
  std::unique_ptr<Buffer> buffer_;
};

// SequenceMemory on a device: begins as `memory` is, and is read back into one.
class DeviceSequence {
 public:
  DeviceSequence(Backend& backend, const SequenceMemory& memory) : tail_(backend, memory.tail) {
    for (size_t i = 0; i < memory.slabs.size(); ++i) {
      slabs_.emplace_back(backend, memory.slabs[i]);
      pointers.push_back(memory.pointers[i] == nullptr ? nullptr : slabs_.back().data());
    }
  }
  std::byte* tail() const { return tail_.data(); }
  void read(SequenceMemory& memory) const {
    memory.tail = tail_.read();
    for (size_t i = 0; i < slabs_.size(); ++i) {
      const auto bytes = slabs_[i].read();
      std::copy(bytes.begin(), bytes.end(), memory.slabs[i].begin());  // its addresses stay
    }
  }

  std::vector<std::byte*> pointers;

 private:
  GuardedBytes tail_;
  std::vector<GuardedBytes> slabs_;
};

// What chunks point to beside their pages, in a backend's memory.
class DeviceExtras {
 public:
  explicit DeviceExtras(Backend& backend) : backend_(backend) {}

  const TokenObserver* put(const TokenObserver& observer, size_t banks_and_heads) {
    const size_t count = banks_and_heads * observer.capacity;
    Observer& copy = *observers_.emplace_back(std::make_unique<Observer>(Observer{observer, observer, {}}));
    float** const fields[] = {&copy.device.column_sums, &copy.device.window_sums, &copy.device.key_norms};
    for (float** field : fields) {
      if (*field == nullptr) continue;
      const auto* bytes = reinterpret_cast<const std::byte*>(*field);
      copy.sums.push_back(std::make_unique<GuardedBytes>(
          backend_, std::vector<std::byte>(bytes, bytes + count * sizeof(float))));
      *field = reinterpret_cast<float*>(copy.sums.back()->data());
    }
    return &copy.device;
  }
  const ArchivedPages* put(const ArchivedPages* archives, int num_banks) {
    auto& copies =
        *archives_.emplace_back(std::make_unique<std::vector<ArchivedPages>>(archives, archives + num_banks));
    ArchivedPages& pages = copies[kBank];
    auto& pointers = *pointers_.emplace_back(
        std::make_unique<std::vector<std::byte*>>(size_t(pages.num_pages) * kMaxSlabs));
    for (size_t p = 0; p < pointers.size(); ++p) {
      const std::byte* slab = pages.slabs[p];
      if (slab == nullptr) continue;
      slabs_.push_back(std::make_unique<GuardedBytes>(
          backend_, std::vector<std::byte>(slab, slab + pages.layout->slab_bytes[p % kMaxSlabs])));
      pointers[p] = slabs_.back()->data();
    }
    pages.slabs = pointers.data();
    return copies.data();
  }
  // Observers' sums, back to where they came from.
  void read() const {
    for (const auto& observer : observers_) {
      size_t next = 0;
      for (float* host : {observer->host.column_sums, observer->host.window_sums, observer->host.key_norms}) {
        if (host == nullptr) continue;
        const auto bytes = observer->sums[next++]->read();
        std::memcpy(host, bytes.data(), bytes.size());
      }
    }
  }

 private:
  struct Observer {
    TokenObserver host, device;
    std::vector<std::unique_ptr<GuardedBytes>> sums;
  };
  Backend& backend_;
  std::vector<std::unique_ptr<Observer>> observers_;
  std::vector<std::unique_ptr<std::vector<ArchivedPages>>> archives_;
  std::vector<std::unique_ptr<std::vector<std::byte*>>> pointers_;
  std::vector<std::unique_ptr<GuardedBytes>> slabs_;
};

// attend() of attention_support.h on any backend: all that a chunk points to goes there and comes back.
inline std::vector<std::vector<float>> attend_anywhere(Backend& backend, const PageLayout& layout,
                                                       const Shape& s, const std::vector<Chunk>& chunks,
                                                       int readers = 1) {
  if (backend.host_accessible()) return attend(backend, layout, s, chunks, readers);
  std::vector<DeviceSequence> sequences;
  sequences.reserve(chunks.size());
  DeviceExtras extras(backend);
  std::vector<float> q, k, v;
  std::vector<SequenceSlice> slices;
  std::vector<std::vector<uint8_t>> levels;
  int rows = 0;
  for (const Chunk& c : chunks) {
    const auto append = [&](std::vector<float>& to, const std::vector<float>& from, int cols) {
      const auto part = rows_of(from, c.first, c.rows, cols);
      to.insert(to.end(), part.begin(), part.end());
    };
    append(q, c.inputs->q, s.q_heads * s.dim);
    append(k, c.inputs->k, s.kv_heads * s.dim);
    append(v, c.inputs->v, s.kv_heads * s.dim);
    levels.emplace_back((c.first + c.rows) / layout.page_tokens,
                        static_cast<uint8_t>(c.levels == 0 ? layout.num_levels : c.levels));
    if (c.page_levels != nullptr) levels.back() = *c.page_levels;
    const DeviceSequence& memory = sequences.emplace_back(backend, *c.memory);
    slices.push_back({rows, c.rows, c.first, memory.pointers.data(), levels.back().data(), memory.tail()});
    slices.back().unwanted_rows = c.unwanted;
    if (c.archives != nullptr) slices.back().archives = extras.put(c.archives, layout.num_banks);
    if (c.observer != nullptr)
      slices.back().observer = extras.put(*c.observer, size_t(layout.num_banks) * s.kv_heads);
    rows += c.rows;
  }
  GuardedTensor tq(backend, rows, s.q_heads * s.dim, q), tk(backend, rows, s.kv_heads * s.dim, k),
      tv(backend, rows, s.kv_heads * s.dim, v), out(backend, rows, s.q_heads * s.dim);
  for (int reader = 0; reader < readers; ++reader) {
    backend.attend({.layout = &layout,
                    .bank = kBank,
                    .num_q_heads = s.q_heads,
                    .scale = 1.0f / std::sqrt(static_cast<float>(s.dim)),
                    .window = chunks[0].window,
                    .soft_cap = chunks[0].soft_cap,
                    .q = tq,
                    .k = tk,
                    .v = tv,
                    .out = out,
                    .first_reader = reader == 0,
                    .last_reader = reader == readers - 1,
                    .sequences = slices});
  }
  std::vector<std::vector<float>> results;
  for (const SequenceSlice& slice : slices)
    results.push_back(rows_of(out.values(), slice.first_row, slice.num_rows, s.q_heads * s.dim));
  for (size_t i = 0; i < chunks.size(); ++i) sequences[i].read(*chunks[i].memory);
  extras.read();
  return results;
}

// compact(), likewise.
inline void compact_anywhere(Backend& backend, Compaction compaction, SequenceMemory& from,
                             SequenceMemory& to) {
  compaction.slabs = from.pointers.data();
  compaction.tail = from.tail.data();
  compaction.to_slabs = to.pointers.data();
  if (backend.host_accessible()) return backend.compact(compaction);
  const DeviceSequence device_from(backend, from), device_to(backend, to);
  compaction.slabs = device_from.pointers.data();
  compaction.tail = device_from.tail();
  compaction.to_slabs = device_to.pointers.data();
  backend.compact(compaction);
  device_from.read(from);
  device_to.read(to);
}

// A whole sequence in chunks of `chunk` rows.
inline std::vector<float> attend_chunks_anywhere(Backend& backend, const PageLayout& layout, const Shape& s,
                                                 const Inputs& inputs, SequenceMemory& memory, int tokens,
                                                 int chunk, Chunk like = {}, int readers = 1) {
  std::vector<float> all;
  for (int first = 0; first < tokens; first += chunk) {
    like.inputs = &inputs;
    like.memory = &memory;
    like.first = first;
    like.rows = std::min(chunk, tokens - first);
    const auto part = attend_anywhere(backend, layout, s, {like}, readers)[0];
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace lowkey::kernels::test
