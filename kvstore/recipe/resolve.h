// Recipe + profile + model + rank slice -> what the pages of one rank are: the four dials that are settled
// when a model is loaded (layers, heads, features, bits; kvstore/dials), composed.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/page/page_layout.h"
#include "kvstore/dials/layers/layer_map.h"
#include "kvstore/page/archive_spec.h"
#include "kvstore/profile/profile.h"
#include "kvstore/recipe/recipe.h"

namespace lowkey::kvstore {

// Of the whole model.
struct ModelShape {
  std::string name;
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  kernels::DType dtype = kernels::DType::kBf16;
  std::vector<int> kv_producer;  // layer -> layer whose K and V it reads; empty: its own
  // Sliding windows or soft caps of scores: attention over tokens that were moved to an archive knows
  // neither.
  bool windows_or_caps = false;
  Hash128 fingerprint;
};

struct ResolvedCache {
  Recipe recipe;
  LayerMap layers;
  // Of a sequence's own pages. With an archive these are exact: the prompt while it is not complete, and
  // tokens that were not encoded yet.
  kernels::PageLayout pages;
  // With an archive: of encoded pages, one for each bank (num_banks = 1 each, all of equal slab sizes where
  // widths are uniform); empty otherwise.
  std::vector<kernels::PageLayout> archive;
  int spill_levels = 1;  // of a page, the first so many, that a store is given
  // What `pages` are transcoded to for a store (all its levels), and from when they come back; none: a store
  // is given them as they are.
  std::optional<kernels::PageLayout> spilled;
  // Of the layouts of all ranks: equal on every rank of a replica, and ranks of equal fingerprints and slices
  // read each other's pages.
  Hash128 fingerprint;

  // What the device tier and the engine need to know of the archive; none without one.
  std::optional<ArchiveSpec> archive_spec() const;
  // Bytes of one sequence with `prompt` + `generated` tokens on this rank once the prompt is complete: the
  // recipe's own forecast. Without an archive the same as pages.bytes_for_tokens(prompt + generated).
  uint64_t bytes_for(uint64_t prompt, uint64_t generated) const;
};

// `profile`: null when the recipe needs none; `spill_profile`: likewise of the recipe that pages are spilled
// in. Slabs are padded to the longest of all ranks. Errors: kBadInput / kUsage with the rule that is broken.
Result<ResolvedCache> resolve(const Recipe& recipe, const Profile* profile, const ModelShape& model, int rank,
                              int num_ranks, const Profile* spill_profile = nullptr);

// Where the profile of `recipe` is: `explicit_file`, or <model>/profiles/<stem>.profile.safetensors; of a
// model that is a file: in the folder that it is in.
std::filesystem::path profile_file(const Recipe& recipe, const std::filesystem::path& explicit_file,
                                   const std::filesystem::path& model_dir);

// That file, for this model. Errors: kBadInput; also when it was made for another model.
Result<Profile> read_profile(const Recipe& recipe, const std::filesystem::path& explicit_file,
                             const std::filesystem::path& model_dir, const ModelShape& model);

// Of the recipe that pages of `recipe` are spilled in; none where it needs none. `explicit_file` stands for
// the recipe's own profile, and for this one where they have the same name or the recipe itself needs none.
Result<std::optional<Profile>> read_spill_profile(const Recipe& recipe,
                                                  const std::filesystem::path& explicit_file,
                                                  const std::filesystem::path& model_dir,
                                                  const ModelShape& model);

// All of the above for one rank: reads the profiles where they are needed. Errors as above; kUsage when a
// profile is named and not needed.
Result<ResolvedCache> resolve_files(const Recipe& recipe, const std::filesystem::path& profile_file,
                                    const std::filesystem::path& model_dir, const ModelShape& model, int rank,
                                    int num_ranks);

}  // namespace lowkey::kvstore
