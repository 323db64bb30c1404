#include "cli/evaluate_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "worker/model/model_config.h"

namespace lowkey::cli {

namespace json = boost::json;

namespace {

std::string percent(std::optional<double> share) {
  return share ? fmt::format("{:.1f} %", 100 * *share) : "-";
}

}  // namespace

std::string evaluate_markdown(std::span<const EvaluateRow> rows, const std::string& model) {
  std::string text;
  if (!rows.empty())
    text += fmt::format(
        "{}: {} positions of windows of {} tokens, from the middle on; perplexity of the exact cache "
        "{:.3f}{}\n\n",
        model, rows[0].tokens, rows[0].context, rows[0].ppl_exact,
        worker::rounds_weights(worker::parse_weight_storage(rows[0].weights))
            ? fmt::format(" and the model's own weights, beside them weights in {}", rows[0].weights)
            : "");
  text +=
      "| recipe | ratio | bits per element | KL, nats | top-1 agreement | perplexity | recall, first "
      "question "
      "| recall, later ones | attention against exact | encoding in prefill |\n"
      "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  for (const EvaluateRow& row : rows)
    text +=
        fmt::format("| {} | {:.2f}x | {:.2f} | {:.5f} | {} | {:.3f} ({:+.2f} %) | {} | {} | {:.2f} | {} |\n",
                    row.recipe, row.ratio, row.bits_per_element, row.kl, percent(row.top1), row.ppl,
                    100 * (row.ppl / row.ppl_exact - 1), percent(row.recall_first), percent(row.recall_later),
                    row.attention_ratio, percent(row.encode_share));
  return text +
         "\nratio: context tokens of all layers in bf16 / all bytes of the sequence (pages, headers, sink, "
         "exact "
         "rows).\nbits per element: bytes of complete pages / stored elements.\nattention: one token behind "
         "at "
         "least 8,192 random ones, time / exact's. encoding: time to encode a window / time of its "
         "prefill.\n";
}

std::string evaluate_json(std::span<const EvaluateRow> rows) {
  const auto optional = [](std::optional<double> value) {
    return value ? fmt::format("{:.6g}", *value) : std::string("null");
  };
  std::string text = "[\n";
  for (const EvaluateRow& row : rows) {
    text += fmt::format(
        "  {{\"recipe\": {}, \"weights\": \"{}\", \"ratio\": {:.6g}, \"bits_per_element\": {:.6g}, \"kl\": "
        "{:.6g}, \"top1\": "
        "{:.6g}, "
        "\"ppl\": {:.6g}, \"ppl_exact\": {:.6g}, \"recall_first\": {}, \"recall_later\": {}, "
        "\"attention_ratio\": {:.6g}, \"encode_share\": {:.6g}, \"context\": {}, \"tokens\": {}}}",
        json::serialize(json::string(row.recipe)), row.weights, row.ratio, row.bits_per_element, row.kl,
        row.top1, row.ppl, row.ppl_exact, optional(row.recall_first), optional(row.recall_later),
        row.attention_ratio, row.encode_share, row.context, row.tokens);
    text += &row == &rows.back() ? "\n" : ",\n";
  }
  return text + "]\n";
}

namespace {

constexpr double kLeft = 70, kRight = 690, kTop = 40, kBottom = 430;

// A logarithmic axis from `low` to `high` on pixels `from` to `to`.
struct LogAxis {
  double low, high, from, to;
  double at(double value) const {
    const double clamped = std::clamp(value, low, high);
    return from + (to - from) * std::log(clamped / low) / std::log(high / low);
  }
};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

std::string axes(const LogAxis& x, const LogAxis& y) {
  std::string text;
  for (double ratio = x.low; ratio <= x.high * 1.001; ratio *= 2)
    text += fmt::format(
        "<line x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}' stroke='#ddd'/><text x='{0:.1f}' y='{3}' "
        "text-anchor='middle'>{4:g}x</text>\n",
        x.at(ratio), kTop, kBottom, kBottom + 18, ratio);
  for (double kl = y.low; kl <= y.high * 1.001; kl *= 10)
    text += fmt::format(
        "<line x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}' stroke='#ddd'/><text x='{3}' y='{4:.1f}' "
        "text-anchor='end'>{5:g}</text>\n",
        kLeft, kRight, y.at(kl), kLeft - 6, y.at(kl) + 4, kl);
  return text;
}

}  // namespace

std::string evaluate_svg(std::span<const EvaluateRow> rows, const std::string& model) {
  double most_ratio = 2, least_kl = 1e-1, most_kl = 1e-2;
  for (const EvaluateRow& row : rows) {
    most_ratio = std::max(most_ratio, row.ratio);
    most_kl = std::max(most_kl, row.kl);
    if (row.kl > 1e-6) least_kl = std::min(least_kl, row.kl);
  }
  const LogAxis x{1, std::exp2(std::ceil(std::log2(most_ratio))), kLeft, kRight};
  const LogAxis y{std::pow(10, std::floor(std::log10(least_kl))),
                  std::pow(10, std::ceil(std::log10(most_kl))), kBottom, kTop};
  std::string text = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 760 480' font-family='sans-serif' "
      "font-size='12'>\n<rect width='760' height='480' fill='white'/>\n<text x='{}' y='22' "
      "font-size='15'>{}: what a smaller cache costs</text>\n{}",
      kLeft, escaped(model), axes(x, y));
  text += fmt::format(
      "<text x='{:.0f}' y='470' text-anchor='middle'>bf16 bytes / all bytes at {} tokens</text>\n"
      "<text x='16' y='{:.0f}' text-anchor='middle' transform='rotate(-90 16 {:.0f})'>KL to the exact cache, "
      "nats</text>\n",
      (kLeft + kRight) / 2, rows.empty() ? 0 : rows[0].context, (kTop + kBottom) / 2, (kTop + kBottom) / 2);
  for (const EvaluateRow& row : rows)
    text += fmt::format(
        "<circle cx='{0:.1f}' cy='{1:.1f}' r='4' fill='#2a6fb0'><title>{2}: {3:.2f}x, KL {4:.2g}</title>"
        "</circle><text x='{5:.1f}' y='{6:.1f}'>{2}</text>\n",
        x.at(row.ratio), y.at(row.kl), escaped(row.recipe), row.ratio, row.kl, x.at(row.ratio) + 7,
        y.at(row.kl) + 4);
  return text + "</svg>\n";
}

}  // namespace lowkey::cli
