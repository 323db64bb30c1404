// The memory behind GET /v1/kv/explain: the last requests, running ones included. I/O thread only.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "coordinator/http/message.h"

namespace lowkey::coordinator {

struct RequestStory;

class Explainer {
 public:
  static constexpr size_t kMaxRequests = 1024;  // the oldest are forgotten

  // The story goes on being written by whoever answers the request.
  void remember(std::shared_ptr<const RequestStory> story);

  // `query`: request=ID, the id of an answer. 200 with JSON for a human to read, 400 without an id, 404 for
  // ids that are unknown, forgotten, or of another tenant.
  HttpResponse explain(std::string_view query, const std::string& tenant) const;

 private:
  std::unordered_map<std::string, std::shared_ptr<const RequestStory>> stories_;  // by id
  std::deque<std::string> order_;                                                 // oldest first
};

}  // namespace lowkey::coordinator
