// What PageLayout::make() refuses, each with one line that says what was expected and what was found.
#pragma once

#include <string>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// kUsage; `param` names the setting.
Error bad_page_spec(const PageSpec& spec, std::string what, std::string param);

// All but the vectors.
Status check_page_spec(const PageSpec& spec, const CacheShape& shape);

// One stored vector of `dim` of input_dim features.
Status check_vector_spec(const PageSpec& spec, const VectorSpec& vector, int input_dim, int dim);

}  // namespace lowkey::kernels
