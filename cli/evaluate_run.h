// What recipes cost in quality, bytes and time on one model and text: the protocol of docs/quality.md.
//
// Windows of the whole context are cut evenly from the text. Every recipe answers for the positions from the
// middle of a window on, beside the reference. A recipe that chooses tokens, or encodes
// only when a prompt is complete, takes the first half as its prompt and the second one token by token; for
// all others one forward pass gives the same (docs/architecture.md, "What a query sees"). Of a recipe that
// recodes spilled pages, the first half is a prefix that came back from a store; bytes and times are of its
// pages on the device.
//
// The reference is the exact cache with the weights as the model has them. Where they are rounded (int8,
// int4), what is scored is the error of weights and cache together; the recipe `exact` then shows that of the
// weights.
//
// A recipe of several levels has a row for each: of its first levels alone, `name:1` and so on, and of all.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/page/page_layout.h"
#include "kvstore/recipe/resolve.h"

namespace lowkey::cli {

struct EvaluateOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> recipes;
  std::filesystem::path text;
  std::filesystem::path profile;  // of the recipes that need one; empty: <model>/profiles/...
  int context = 0;                // tokens of a window; 0: all that the model can take
  int windows = 16;
  kernels::DType dtype = kernels::DType::kBf16;
  std::string weights = "auto";  // one of serve's --weights
  int threads = 1;
};

struct EvaluateRow {
  std::string recipe;
  std::string weights = "auto";
  double ratio = 0;  // context tokens in plain bf16, all layers / all bytes of the sequence in bf16
  double bits_per_element = 0;  // of complete pages: 8 * bytes / stored elements; no headers, sink and tail
  double kl = 0;                // nats, KL(reference || recipe), mean over positions
  double top1 = 0;              // share of positions with the same most likely token
  double ppl = 0, ppl_exact = 0;
  // Share of pass keys given: the first question, and those after it; none where the context is too short.
  std::optional<double> recall_first, recall_later;
  double attention_ratio = 0;  // decode attention / exact's, behind max(context, 8192) random tokens
  double encode_share = 0;     // time to encode a window / time of its prefill
  int context = 0;
  int64_t tokens = 0;  // scored positions
};

// Told what is done, in all of `total` steps.
using EvaluateProgress = std::function<void(int done, int total)>;

// One row per recipe and level, in order, all levels last. Errors: kUsage, kBadInput with what is wrong with
// the model, a recipe, a profile or the text.
Result<std::vector<EvaluateRow>> evaluate(const EvaluateOptions& options, const EvaluateProgress& progress);

// Bits per stored element of the first `levels` levels of complete pages.
double bits_per_element(const kvstore::ResolvedCache& cache, int levels);

}  // namespace lowkey::cli
