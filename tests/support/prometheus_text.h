// A strict reader of Prometheus' text format 0.0.4 for tests: refuses what Prometheus refuses and what a
// careful exporter avoids (samples without TYPE, a family in two places, duplicate series, decreasing
// buckets).
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <sstream>
#include <string>

namespace lowkey::test {

struct PrometheusPage {
  std::map<std::string, std::string> types;  // family -> type
  std::map<std::string, std::string> help;   // family -> help
  std::map<std::pair<std::string, std::map<std::string, std::string>>, double>
      samples;        // (name, labels) -> value
  std::string error;  // empty: the page is valid

  double value(const std::string& name, const std::map<std::string, std::string>& labels) const {
    auto found = samples.find({name, labels});
    return found == samples.end() ? std::numeric_limits<double>::quiet_NaN() : found->second;
  }
};

class PrometheusReader {
 public:
  explicit PrometheusReader(const std::string& text) : text_(text) {}

  PrometheusPage read() {
    std::istringstream lines(text_);
    if (text_.empty() || text_.back() != '\n') fail("the page does not end with a line feed");
    while (page_.error.empty() && std::getline(lines, line_)) {
      at_ = 0;
      if (line_.empty()) continue;
      line_[0] == '#' ? comment() : sample();
    }
    return page_;
  }

 private:
  void fail(const std::string& what) {
    if (page_.error.empty()) page_.error = what + ": " + line_;
  }

  static bool name_char(char c, bool first) {
    return c == '_' || c == ':' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (!first && c >= '0' && c <= '9');
  }
  std::string name() {
    size_t begin = at_;
    while (at_ < line_.size() && name_char(line_[at_], at_ == begin)) ++at_;
    if (at_ == begin) fail("a name is expected");
    return line_.substr(begin, at_ - begin);
  }

  void comment() {
    bool type = line_.starts_with("# TYPE "), help = line_.starts_with("# HELP ");
    if (!type && !help) return;
    at_ = 7;
    auto family = name();
    auto rest = at_ < line_.size() ? line_.substr(at_ + 1) : "";
    auto& table = type ? page_.types : page_.help;
    if (!table.emplace(family, rest).second) fail("declared twice");
    if (type && rest != "counter" && rest != "gauge" && rest != "histogram") fail("unknown type");
    family_ = family;
    previous_bucket_ = -1;
  }

  std::string quoted() {
    std::string value;
    if (line_[at_++] != '"') fail("a quote is expected");
    while (at_ < line_.size() && line_[at_] != '"') {
      if (line_[at_] == '\\') {
        char c = ++at_ < line_.size() ? line_[at_] : 0;
        if (c != '\\' && c != '"' && c != 'n') fail("bad escape");
        value += c == 'n' ? '\n' : c;
      } else {
        value += line_[at_];
      }
      ++at_;
    }
    if (at_ >= line_.size()) fail("unterminated value");
    ++at_;
    return value;
  }

  void sample() {
    auto metric = name();
    std::map<std::string, std::string> labels;
    if (at_ < line_.size() && line_[at_] == '{') {
      ++at_;
      while (page_.error.empty() && at_ < line_.size() && line_[at_] != '}') {
        auto key = name();
        if (at_ >= line_.size() || line_[at_++] != '=') return fail("'=' is expected");
        if (at_ >= line_.size() || !labels.emplace(key, quoted()).second) return fail("label twice");
        if (at_ < line_.size() && line_[at_] == ',') ++at_;
      }
      ++at_;
    }
    if (!page_.error.empty()) return;
    if (at_ >= line_.size() || line_[at_++] != ' ') return fail("a space is expected");
    std::istringstream rest(line_.substr(at_));
    std::string number, more;
    rest >> number >> more;
    if (!more.empty()) return fail("timestamps are not expected");
    record(metric, labels, number);
  }

  void record(const std::string& metric, const std::map<std::string, std::string>& labels,
              const std::string& text) {
    char* end = nullptr;
    double value = text == "+Inf" ? INFINITY : text == "-Inf" ? -INFINITY : std::strtod(text.c_str(), &end);
    if (end && (*end || end == text.c_str()) && text != "Nan") fail("bad number");
    auto type = page_.types.find(family_);
    if (type == page_.types.end() || !page_.help.contains(family_))
      return fail("sample before TYPE and HELP");
    auto suffix = metric.starts_with(family_) ? metric.substr(family_.size()) : "?";
    bool histogram = type->second == "histogram";
    if (histogram ? (suffix != "_bucket" && suffix != "_sum" && suffix != "_count") : !suffix.empty())
      return fail("sample outside its family");
    if (histogram && (suffix == "_bucket") != labels.contains("le")) return fail("le belongs to buckets");
    if (type->second == "counter" && value < 0) return fail("negative counter");
    if (suffix == "_bucket") {
      if (value < previous_bucket_) return fail("buckets decrease");
      previous_bucket_ = labels.at("le") == "+Inf" ? -1 : value;
    }
    if (!page_.samples.emplace(std::pair(metric, labels), value).second) fail("series twice");
  }

  const std::string& text_;
  std::string line_, family_;
  size_t at_ = 0;
  double previous_bucket_ = -1;
  PrometheusPage page_;
};

inline PrometheusPage read_prometheus_text(const std::string& text) {
  return PrometheusReader(text).read();
}

}  // namespace lowkey::test
