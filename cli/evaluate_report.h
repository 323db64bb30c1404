// The table of `lowkey evaluate` in three forms.
#pragma once

#include <span>
#include <string>

#include "cli/evaluate_run.h"

namespace lowkey::cli {

std::string evaluate_markdown(std::span<const EvaluateRow> rows, const std::string& model);
std::string evaluate_json(std::span<const EvaluateRow> rows);  // docs/quality.md names the fields
// KL (log axis) against the all-bytes ratio (log axis), one labelled point per recipe. Recipes that lose
// nothing measurable stand on the lower edge.
std::string evaluate_svg(std::span<const EvaluateRow> rows, const std::string& model);

}  // namespace lowkey::cli
