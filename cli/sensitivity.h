// The second pass of `lowkey calibrate`: what every part of the cache loses when it alone is coarser,
// measured as KL through the attention path that serves.
#pragma once

#include <span>
#include <vector>

#include "cli/kl_meter.h"
#include "kvstore/calibrate/build_profile.h"

namespace lowkey::cli {

class Sensitivity {
 public:
  // `frame`: pages without vectors (tokens, sink, join). All outlive it.
  Sensitivity(const KlMeter& meter, const kvstore::Profile& profile, const kernels::PageSpec& frame,
              const kernels::CacheShape& shape)
      : meter_(meter), profile_(profile), frame_(frame), shape_(shape) {}

  // Embedded codes: for every vector and group, no bits and 2 bits with the vector's other groups at 8 bits
  // and all other vectors exact; the remaining widths by `errors` ([vector][group], code_errors()).
  Result<kvstore::LossTable> planes(
      std::span<const std::vector<std::array<double, kvstore::kWidths.size()>>> errors) const;

  // No quantizer: for every vector, its loss with its first 0 .. n groups, n being its rank in `from`, and
  // all other vectors at theirs. (Algorithm 1 of arXiv:2410.14731 measures anew after every group; this after
  // every budget.)
  Result<std::vector<std::vector<double>>> ranks(const kvstore::RankChoice& from) const;

  // Of the first `levels` levels; 0: of all.
  Result<double> of_budget(const kvstore::Budget& budget, bool quantize, int levels = 0) const;

 private:
  Result<double> with(std::vector<kernels::VectorSpec> vectors, int num_levels = 1,
                      int read_levels = 0) const;

  const KlMeter& meter_;
  const kvstore::Profile& profile_;
  const kernels::PageSpec& frame_;
  const kernels::CacheShape& shape_;
};

}  // namespace lowkey::cli
