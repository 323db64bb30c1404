// The decoder families: what each has beside what all have (pre-norm, RoPE, grouped-query attention over
// cache pages, a gated MLP). One decoder runs them all (decoder_model.h); options that vary inside a family
// are in ModelConfig.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lowkey::worker {

enum class Family : uint8_t { kLlama, kMistral, kQwen2, kQwen3, kPhi3, kGemma, kGemma2, kGemma3 };

struct FamilyTraits {
  Family family = Family::kLlama;
  std::string_view name;          // as in shapes and reports
  std::string_view title;         // for people
  std::string_view architecture;  // in config.json
  std::string_view model_type;

  bool qkv_bias = false;           // always there; elsewhere the option attention_bias says
  bool bias_options = false;       // attention_bias covers o, too; mlp_bias (Llama)
  bool qk_norm = false;            // every head of q and k is normed before RoPE (Qwen3)
  bool fused_projections = false;  // one tensor of q, k, v and one of gate, up (Phi-3)
  bool gemma = false;              // norms by (1 + weight), tanh GELU, tied, embeddings times sqrt(hidden)
  bool post_norms = false;         // what attention and MLP give is normed before it is added (Gemma 2)
  bool windows = false;            // knows sliding_window
};

std::span<const FamilyTraits> families();
const FamilyTraits& traits_of(Family family);
const FamilyTraits* find_architecture(std::string_view architecture);  // null: none of ours
std::string known_architectures();                                     // "one of [LlamaForCausalLM, ...]"

}  // namespace lowkey::worker
