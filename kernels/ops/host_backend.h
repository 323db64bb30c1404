// What backends have in common whose memory is the host's.
#pragma once

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class HostBackend : public Backend {
 public:
  std::unique_ptr<Buffer> allocate(size_t bytes) final;
  bool host_accessible() const final { return true; }
  void upload(std::span<const std::byte> from, std::byte* to) final;
  void download(const std::byte* from, std::span<std::byte> to) final;
  void synchronize() final {}
  PageCopies* page_copies() final { return nullptr; }
  int page_tokens() const final { return 32; }
  void* native_stream() final { return nullptr; }
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& y) final;
  void copy_columns(const Tensor& x, int first, const Tensor& y) final;
  // One after the other, by draw_token().
  void draw_tokens(const Tensor& logits, int parts, int vocab, std::span<const TokenDraw> draws,
                   DrawnToken* tokens) override;
};

}  // namespace lowkey::kernels
