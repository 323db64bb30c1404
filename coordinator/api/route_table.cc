#include "coordinator/api/route_table.h"

#include <spdlog/fmt/fmt.h>

#include <array>
#include <string>

#include "coordinator/api/api_error.h"

namespace lowkey::coordinator {
namespace {

constexpr std::array kRoutes = {
    Route{"/v1/completions", "POST", Action::kCompletions, "/v1/completions"},
    Route{"/v1/chat/completions", "POST", Action::kChat, "/v1/chat/completions"},
    Route{"/v1/models", "GET", Action::kModels, "/v1/models"},
    Route{"/v1/models/", "GET", Action::kModel, "/v1/models/{id}"},
    Route{"/tokenize", "POST", Action::kTokenize, "/tokenize"},
    Route{"/detokenize", "POST", Action::kDetokenize, "/detokenize"},
    Route{"/health", "GET", Action::kHealth, "/health", true},
    Route{"/ready", "GET", Action::kReady, "/ready", true},
    Route{"/metrics", "GET", Action::kMetrics, "/metrics"},
    Route{"/v1/kv/explain", "GET", Action::kExplain, "/v1/kv/explain"},
    Route{"/version", "GET", Action::kVersion, "/version"},
};

std::string allowed(const Route& route) {
  return route.method == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
}

// What the Fetch standard has pages of other origins ask. "*" stands for every header but Authorization.
HttpResponse preflight(const Route& route) {
  HttpResponse response{.content_type = ""};
  response.headers = {{"Allow", allowed(route)},
                      {"Access-Control-Allow-Methods", allowed(route)},
                      {"Access-Control-Allow-Headers", "*, Authorization"},
                      {"Access-Control-Max-Age", "86400"}};
  return response;
}

}  // namespace

const Route* find_route(std::string_view path) {
  for (const auto& route : kRoutes) {
    const bool below = route.path.back() == '/';
    if (below ? path.size() > route.path.size() && path.substr(0, route.path.size()) == route.path
              : path == route.path)
      return &route;
  }
  return nullptr;
}

std::optional<HttpResponse> screen(HttpRequest& request, const ApiKeys& keys) {
  const Route* route = find_route(request.path);
  if (route) request.endpoint = route->endpoint;
  // Browsers ask before they send a page's request, and send no key with that.
  if (route && request.method == "OPTIONS") return preflight(*route);
  if (!(route && route->open) && !keys.tenant(request.authorization))
    return error_http(
        api_error(401, "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."));
  if (!route) return error_http(api_error(404, fmt::format("There is nothing at {}.", request.path)));
  if (request.method == route->method) return std::nullopt;
  HttpResponse response = error_http(
      api_error(405, fmt::format("{} takes {}, not {}.", route->path, allowed(*route), request.method)));
  response.headers.emplace_back("Allow", allowed(*route));
  return response;
}

}  // namespace lowkey::coordinator
