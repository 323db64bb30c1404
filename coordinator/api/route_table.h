// The endpoints: which path takes which method, and who may ask.
#pragma once

#include <optional>
#include <string_view>

#include "coordinator/api/api_keys.h"
#include "coordinator/http/message.h"

namespace lowkey::coordinator {

enum class Action {
  kCompletions,
  kChat,
  kTokenize,
  kDetokenize,
  kModels,
  kModel,
  kHealth,
  kReady,
  kMetrics,
  kExplain,
  kVersion
};

struct Route {
  std::string_view path;  // a trailing "/" matches everything below it
  std::string_view method;
  Action action;
  std::string_view endpoint;  // metric label
  bool open = false;          // needs no key
};

// Null: there is nothing at `path`. Static storage.
const Route* find_route(std::string_view path);

// As HttpHandler::screen().
std::optional<HttpResponse> screen(HttpRequest& request, const ApiKeys& keys);

}  // namespace lowkey::coordinator
