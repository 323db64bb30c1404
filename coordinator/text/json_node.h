// A value of a JSON document together with the place where it stands, so that every complaint names file and
// field.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lowkey::coordinator {

// A view: the document must outlive it. An absent field and a null count as the same.
class JsonNode {
 public:
  JsonNode(const boost::json::value& value, std::string file, std::string path = {})
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const boost::json::value& value() const { return *value_; }
  std::string where() const { return path_.empty() ? file_ : file_ + ": " + path_; }

  std::optional<JsonNode> child(std::string_view key) const;
  Result<JsonNode> object(std::string_view key) const;
  Result<std::string> string(std::string_view key) const;
  Result<std::string> string_or(std::string_view key, std::string_view fallback) const;
  Result<bool> bool_or(std::string_view key, bool fallback) const;
  // Integers within 0..limit.
  Result<int64_t> integer(std::string_view key, int64_t limit) const;
  Result<int64_t> integer_or(std::string_view key, int64_t limit, int64_t fallback) const;
  Result<std::vector<JsonNode>> array(std::string_view key) const;

  Error wrong(std::string_view expected) const;  // "<where>: expected <expected>, found <kind>"
  Error bad(const std::string& problem) const;   // "<where>: <problem>"
  Error unsupported(std::string_view type, std::string_view supported) const;

 private:
  const boost::json::value* value_;
  std::string file_;
  std::string path_;  // "pre_tokenizer.pretokenizers[1]"; empty for the document itself
};

}  // namespace lowkey::coordinator
