#include "worker/model/family.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/check.h"

namespace lowkey::worker {
namespace {

constexpr std::array kFamilies = {
    FamilyTraits{.family = Family::kLlama,
                 .name = "llama",
                 .title = "Llama",
                 .architecture = "LlamaForCausalLM",
                 .model_type = "llama",
                 .bias_options = true},
    FamilyTraits{.family = Family::kMistral,
                 .name = "mistral",
                 .title = "Mistral",
                 .architecture = "MistralForCausalLM",
                 .model_type = "mistral",
                 .windows = true},
    FamilyTraits{.family = Family::kQwen2,
                 .name = "qwen2",
                 .title = "Qwen2",
                 .architecture = "Qwen2ForCausalLM",
                 .model_type = "qwen2",
                 .qkv_bias = true,
                 .windows = true},
    FamilyTraits{.family = Family::kQwen3,
                 .name = "qwen3",
                 .title = "Qwen3",
                 .architecture = "Qwen3ForCausalLM",
                 .model_type = "qwen3",
                 .bias_options = true,
                 .qk_norm = true,
                 .windows = true},
    FamilyTraits{.family = Family::kPhi3,
                 .name = "phi3",
                 .title = "Phi-3",
                 .architecture = "Phi3ForCausalLM",
                 .model_type = "phi3",
                 .fused_projections = true,
                 .windows = true},
    FamilyTraits{.family = Family::kGemma,
                 .name = "gemma",
                 .title = "Gemma",
                 .architecture = "GemmaForCausalLM",
                 .model_type = "gemma",
                 .bias_options = true,
                 .gemma = true},
    FamilyTraits{.family = Family::kGemma2,
                 .name = "gemma2",
                 .title = "Gemma 2",
                 .architecture = "Gemma2ForCausalLM",
                 .model_type = "gemma2",
                 .bias_options = true,
                 .gemma = true,
                 .post_norms = true,
                 .windows = true},
    FamilyTraits{.family = Family::kGemma3,
                 .name = "gemma3",
                 .title = "Gemma 3",
                 .architecture = "Gemma3ForCausalLM",
                 .model_type = "gemma3_text",
                 .bias_options = true,
                 .qk_norm = true,
                 .gemma = true,
                 .post_norms = true,
                 .windows = true},
};

}  // namespace

std::span<const FamilyTraits> families() {
  return kFamilies;
}

const FamilyTraits& traits_of(Family family) {
  const FamilyTraits& traits = kFamilies[static_cast<size_t>(family)];
  LOWKEY_CHECK(traits.family == family, "family {}", static_cast<int>(family));
  return traits;
}

const FamilyTraits* find_architecture(std::string_view architecture) {
  const auto found = std::ranges::find(kFamilies, architecture, &FamilyTraits::architecture);
  return found == kFamilies.end() ? nullptr : &*found;
}

std::string known_architectures() {
  std::vector<std::string_view> names;
  for (const FamilyTraits& traits : kFamilies) names.push_back(traits.architecture);
  return fmt::format("one of [{}]", fmt::join(names, ", "));
}

}  // namespace lowkey::worker
