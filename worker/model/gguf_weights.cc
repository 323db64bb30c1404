#include "worker/model/gguf_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/safetensors/safetensors_header.h"
#include "kernels/ops/few_bit_weights.h"
#include "worker/model/gguf_blocks.h"

namespace lowkey::worker {
namespace {

struct Name {
  std::string_view ours, theirs;
};
constexpr std::array kModelNames = {Name{"model.embed_tokens", "token_embd"},
                                    Name{"model.norm", "output_norm"}, Name{"lm_head", "output"}};
constexpr std::array kLayerNames = {Name{"input_layernorm", "attn_norm"},
                                    Name{"self_attn.q_proj", "attn_q"},
                                    Name{"self_attn.k_proj", "attn_k"},
                                    Name{"self_attn.v_proj", "attn_v"},
                                    Name{"self_attn.qkv_proj", "attn_qkv"},
                                    Name{"self_attn.o_proj", "attn_output"},
                                    Name{"self_attn.q_norm", "attn_q_norm"},
                                    Name{"self_attn.k_norm", "attn_k_norm"},
                                    Name{"pre_feedforward_layernorm", "ffn_norm"},
                                    Name{"post_feedforward_layernorm", "post_ffw_norm"},
                                    Name{"mlp.gate_proj", "ffn_gate"},
                                    Name{"mlp.up_proj", "ffn_up"},
                                    Name{"mlp.gate_up_proj", "ffn_up"},
                                    Name{"mlp.down_proj", "ffn_down"}};

std::string_view lookup(std::span<const Name> names, std::string_view ours) {
  const auto found = std::ranges::find(names, ours, &Name::ours);
  return found == names.end() ? std::string_view() : found->theirs;
}

// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight".
std::string their_name(std::string_view tensor, bool post_norms) {
  const size_t dot = tensor.rfind('.');
  std::string_view stem = tensor.substr(0, dot), what = tensor.substr(dot);
  constexpr std::string_view kLayers = "model.layers.";
  if (!stem.starts_with(kLayers)) return std::string(lookup(kModelNames, stem)) + std::string(what);
  stem.remove_prefix(kLayers.size());
  const std::string_view layer = stem.substr(0, stem.find('.'));
  stem.remove_prefix(layer.size() + 1);
  std::string_view theirs = lookup(kLayerNames, stem);
  if (stem == "post_attention_layernorm") theirs = post_norms ? "post_attention_norm" : "ffn_norm";
  return fmt::format("blk.{}.{}{}", layer, theirs, what);
}

std::optional<kernels::DType> plain_dtype(GgufType type) {
  if (type == GgufType::kF32) return kernels::DType::kF32;
  if (type == GgufType::kF16) return kernels::DType::kF16;
  if (type == GgufType::kBf16) return kernels::DType::kBf16;
  return std::nullopt;
}

}  // namespace

Result<std::unique_ptr<GgufWeights>> GgufWeights::open(const std::filesystem::path& file,
                                                       const ModelConfig& config) {
  LOWKEY_ASSIGN(opened, GgufFile::open(file));
  const std::string* architecture = opened.header.text("general.architecture");
  const bool interleaved = architecture != nullptr && *architecture == "llama";
  const bool post_norms = config.traits().post_norms;
  std::unique_ptr<GgufWeights> weights(new GgufWeights(file, std::move(opened)));
  weights->post_norms_ = post_norms;
  if (interleaved) {
    weights->heads_ = config.num_heads;
    weights->kv_heads_ = config.num_kv_heads;
  }
  return weights;
}

Result<const GgufTensor*> GgufWeights::find(const std::string& tensor, std::span<const int64_t> shape) const {
  const std::string name = their_name(tensor, post_norms_);
  const auto found = file_.header.tensors.find(name);
  const auto bad = [&](const std::string& is) {
    return Error{Code::kBadInput, fmt::format("{}: tensor '{}': expected shape {}, found {}", path_.string(),
                                              name, format_shape(shape), is)};
  };
  if (found == file_.header.tensors.end()) return bad("nothing");
  if (!std::ranges::equal(found->second.shape, shape)) return bad(format_shape(found->second.shape));
  return &found->second;
}

// llama.cpp turns pairs (2 i, 2 i + 1) where transformers turns (i, i + d / 2): rows of every head are
// interleaved.
int GgufWeights::interleaved_heads(const std::string& tensor) const {
  if (tensor.find(".q_proj.") != std::string::npos) return heads_;
  if (tensor.find(".k_proj.") != std::string::npos) return kv_heads_;
  return 0;
}

Result<TensorView> GgufWeights::matrix(const std::string& tensor, int64_t rows, int64_t cols) const {
  LOWKEY_ASSIGN(found, find(tensor, std::array{rows, cols}));
  const int heads = interleaved_heads(tensor);
  const auto dtype = plain_dtype(found->type);
  if (dtype && heads == 0) return TensorView{file_.map.bytes().data() + found->begin, *dtype, rows, cols};
  return decoded(*found, rows, cols, heads);
}

Result<TensorView> GgufWeights::vector(const std::string& tensor, int64_t size) const {
  LOWKEY_ASSIGN(found, find(tensor, std::array{size}));
  const int heads = interleaved_heads(tensor);
  const auto dtype = plain_dtype(found->type);
  if (dtype && heads == 0) return TensorView{file_.map.bytes().data() + found->begin, *dtype, 1, size};
  TensorView view = decoded(*found, size, 1, heads);
  std::swap(view.rows, view.cols);
  return view;
}

int64_t GgufWeights::stored_row(int64_t row, int64_t rows, int heads) {
  if (heads == 0) return row;
  const int64_t dim = rows / heads, head = row / dim, i = row % dim;
  return head * dim + (i % (dim / 2)) * 2 + i / (dim / 2);
}

Result<kernels::FewBitForm> GgufWeights::stored_form(const std::string& tensor, int64_t rows,
                                                     int64_t cols) const {
  LOWKEY_ASSIGN(found, find(tensor, std::array{rows, cols}));
  return gguf_form(found->type);
}

bool GgufWeights::is_quantized(const std::string& tensor) const {
  const auto found = file_.header.tensors.find(their_name(tensor, post_norms_));
  return found != file_.header.tensors.end() && !plain_dtype(found->second.type);
}

void GgufWeights::read_blocks(const std::string& tensor, int64_t row, int64_t first_block,
                              kernels::FewBitMatrix& to, int to_row) const {
  const GgufTensor& from = file_.header.tensors.at(their_name(tensor, post_norms_));
  const int64_t rows = from.shape.front(), row_bytes = static_cast<int64_t>(from.end - from.begin) / rows;
  const std::byte* data =
      file_.map.bytes().data() + from.begin + stored_row(row, rows, interleaved_heads(tensor)) * row_bytes;
  std::array<int8_t, kernels::kWeightBlock> codes;
  for (int i = 0; i < to.blocks(); ++i)
    to.set_block(to_row, i, gguf_codes(from.type, data, first_block + i, codes), codes);
}

TensorView GgufWeights::decoded(const GgufTensor& tensor, int64_t rows, int64_t cols, int heads) const {
  const int64_t elements = rows * cols;
  std::vector<std::byte> memory(static_cast<size_t>(elements) * sizeof(float));
  auto* out = reinterpret_cast<float*>(memory.data());
  const std::byte* data = file_.map.bytes().data() + tensor.begin;
  if (heads == 0) {
    dequantize_gguf(tensor.type, data, elements, out);
  } else {
    const int64_t row_bytes = static_cast<int64_t>(tensor.end - tensor.begin) / rows;
    for (int64_t row = 0; row < rows; ++row)
      dequantize_gguf(tensor.type, data + stored_row(row, rows, heads) * row_bytes, cols, out + row * cols);
  }
  const std::byte* where = memory.data();
  decoded_.emplace(where, std::move(memory));
  return {.data = where, .dtype = kernels::DType::kF32, .rows = rows, .cols = cols};
}

void GgufWeights::prefetch(const TensorView&, int64_t, int64_t) const {}

void GgufWeights::release(const TensorView& view) const {
  decoded_.erase(view.data);
}

uint64_t GgufWeights::num_parameters() const {
  uint64_t total = 0;
  for (const auto& [name, tensor] : file_.header.tensors) {
    uint64_t elements = 1;
    for (const int64_t extent : tensor.shape) elements *= static_cast<uint64_t>(extent);
    total += elements;
  }
  return total;
}

}  // namespace lowkey::worker
