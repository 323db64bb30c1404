// Complete model folders with random weights: for speed work on real shapes, and for tests.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "base/result.h"
#include "worker/model/model_config.h"

namespace lowkey::worker {

// A shape by name (135M, 1B, tiny), by key=value list, or both: "tiny", "135M,layers=2",
// "hidden=64,heads=4,kv_heads=2". Keys: family (FamilyTraits::name), layers, hidden, heads, kv_heads,
// head_dim, ffn, vocab, positions, tied (0, 1), share (layers that read one's K and V, Cross-Layer
// Attention), window (of families that have one); what is not named is as in tiny. Errors: kUsage naming the
// key and what it may be.
Result<ModelConfig> parse_shape(std::string_view text);

// Writes config.json, generation_config.json, model.safetensors (bf16), tokenizer.json (byte-level: every
// text can be encoded) and tokenizer_config.json (ChatML) into `dir`, which must be empty or absent. Equal
// arguments give equal bytes. The scales keep hidden states near 1 and logits near 2.5 (standard deviation),
// so that greedy text wanders instead of repeating one token; the end-of-text token has logit 0 and
// practically never comes. Errors: kUsage when the shape is no model, or the folder not empty; kInternal when
// writing fails.
Status write_random_model(const ModelConfig& config, uint64_t seed, const std::filesystem::path& dir);

}  // namespace lowkey::worker
