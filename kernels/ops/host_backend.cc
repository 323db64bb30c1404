#include "kernels/ops/host_backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/ops/host_buffer.h"

namespace lowkey::kernels {
namespace {

float* row_of(const Tensor& x, int row) {
  return x.as<float>() + static_cast<size_t>(row) * x.cols;
}

}  // namespace

std::unique_ptr<Buffer> HostBackend::allocate(size_t bytes) {
  return std::make_unique<HostBuffer>(bytes);
}

void HostBackend::upload(std::span<const std::byte> from, std::byte* to) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

void HostBackend::download(const std::byte* from, std::span<std::byte> to) {
  if (!to.empty()) std::memcpy(to.data(), from, to.size());
}

void HostBackend::gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) {
  for (size_t i = 0; i < rows.size(); ++i)
    std::memcpy(row_of(y, static_cast<int>(i)), row_of(x, rows[i]), x.cols * sizeof(float));
}

void HostBackend::copy_columns(const Tensor& x, int first, const Tensor& y) {
  LOWKEY_CHECK(first >= 0 && first + y.cols <= x.cols && x.rows == y.rows,
               "columns {} of [{}, {}] -> [{}, {}]", first, x.rows, x.cols, y.rows, y.cols);
  for (int row = 0; row < y.rows; ++row)
    std::memcpy(row_of(y, row), row_of(x, row) + first, y.cols * sizeof(float));
}

void HostBackend::draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                              DrawnToken* tokens) {
  LOWKEY_CHECK(parts >= 1 && logits.rows % parts == 0 && vocab <= parts * logits.cols,
               "{} tokens in {} pieces of [{}, {}]", vocab, parts, logits.rows / parts, logits.cols);
  std::vector<float> whole;
  for (size_t i = 0; i < draws.size(); ++i) {
    whole.clear();
    for (int part = 0; part < parts && part * logits.cols < vocab; ++part) {
      const float* from = row_of(logits, part * (logits.rows / parts) + draws[i].row);
      whole.insert(whole.end(), from, from + std::min(logits.cols, vocab - part * logits.cols));
    }
    tokens[i] = draw_token(whole, draws[i]);
  }
}

}  // namespace lowkey::kernels
