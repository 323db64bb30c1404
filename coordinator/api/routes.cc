#include "coordinator/api/routes.h"

#include <spdlog/spdlog.h>

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/json.hpp>

#include "base/version.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/explainer.h"
#include "coordinator/api/generations.h"
#include "coordinator/api/metrics_page.h"
#include "coordinator/api/percent.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"
#include "coordinator/membership/membership.h"
#include "coordinator/text/tokenizer.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

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

// Bodies up to this size are tokenized on the I/O thread.
constexpr size_t kInlineBytes = 16 << 10;

const Route* find_route(std::string_view path) {
  for (const auto& route : kRoutes) {
    const bool below = route.path.back() == '/';
    if (below ? path.size() > route.path.size() && path.substr(0, route.path.size()) == route.path
              : path == route.path)
      return &route;
  }
  return nullptr;
}

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

HttpResponse json_response(const json::value& value, int status = 200) {
  return HttpResponse{.status = status, .body = json::serialize(value)};
}

HttpResponse tokenize(const ServedModel& model, const std::string& body) {
  auto request = parse_tokenize(body);
  if (!request.ok()) return error_http(api_error(request.error()));
  if (!request->model.empty() && request->model != model.id)
    return error_http(model_not_found(request->model));
  auto ids = encode(model, *request);
  if (!ids.ok()) return error_http(api_error(ids.error()));
  return json_response(
      {{"count", ids->size()}, {"max_model_len", model.max_tokens}, {"tokens", json::value_from(*ids)}});
}

HttpResponse detokenize(const ServedModel& model, const std::string& body) {
  auto request = parse_detokenize(body);
  if (!request.ok()) return error_http(api_error(request.error()));
  if (!request->model.empty() && request->model != model.id)
    return error_http(model_not_found(request->model));
  return json_response({{"prompt", model.tokenizer->decode(request->tokens, false)}});
}

}  // namespace

std::optional<HttpResponse> Routes::screen(HttpRequest& request) {
  const Route* route = find_route(request.path);
  if (route) request.endpoint = route->endpoint;
  // Browsers ask before they send a page's request, and send no key with that.
  if (route && request.method == "OPTIONS") return preflight(*route);
  if (!(route && route->open) && !keys_.tenant(request.authorization))
    return error_http(
        api_error(401, "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."));
  if (!route) return error_http(api_error(404, fmt::format("There is nothing at {}.", request.path)));
  if (request.method == route->method) return std::nullopt;
  HttpResponse response = error_http(
      api_error(405, fmt::format("{} takes {}, not {}.", route->path, allowed(*route), request.method)));
  response.headers.emplace_back("Allow", allowed(*route));
  return response;
}

void Routes::handle(ExchangePtr exchange) {
  const std::string& path = exchange->request().path;
  const Route* route = find_route(path);
  // Screened before: only what is open to all comes without a tenant.
  std::string tenant = keys_.tenant(exchange->request().authorization).value_or("");
  switch (route->action) {
    case Action::kCompletions:
      return parts_.generations.begin(std::move(exchange), Endpoint::kCompletions, std::move(tenant));
    case Action::kChat:
      return parts_.generations.begin(std::move(exchange), Endpoint::kChat, std::move(tenant));
    case Action::kTokenize:
      return text(std::move(exchange), true);
    case Action::kDetokenize:
      return text(std::move(exchange), false);
    case Action::kModels:
      return exchange->respond(models());
    case Action::kModel:
      return exchange->respond(model(percent_decoded(path.substr(route->path.size()))));
    case Action::kHealth:
      return exchange->respond(json_response({{"status", "ok"}}));
    case Action::kReady:
      return exchange->respond(ready());
    case Action::kMetrics:
      return parts_.metrics_page.serve(std::move(exchange));
    case Action::kExplain:
      return exchange->respond(parts_.explainer.explain(exchange->request().query, tenant));
    case Action::kVersion:
      return exchange->respond(json_response({{"version", kVersion}}));
  }
}

HttpResponse Routes::error_response(int status, const std::string& message) {
  return error_http(api_error(status, message));
}

HttpResponse Routes::ready() const {
  if (!draining_ && parts_.membership.ready())
    return json_response({{"ready", true}, {"replicas", parts_.membership.ready_replicas()}});
  const std::string reason = draining_ ? "draining" : parts_.membership.not_ready_reason();
  HttpResponse response = json_response({{"ready", false}, {"reason", reason}}, 503);
  response.headers.emplace_back("Retry-After", "1");
  return response;
}

HttpResponse Routes::models() const {
  const auto& model = parts_.model;
  const json::object entry = {{"id", model.id},
                              {"object", "model"},
                              {"created", model.created},
                              {"owned_by", "lowkey"},
                              {"max_model_len", model.max_tokens}};
  json::array data;
  data.push_back(entry);
  return json_response({{"object", "list"}, {"data", std::move(data)}});
}

HttpResponse Routes::model(const std::string& id) const {
  const auto& model = parts_.model;
  if (id != model.id) return error_http(model_not_found(id));
  return json_response({{"id", model.id},
                        {"object", "model"},
                        {"created", model.created},
                        {"owned_by", "lowkey"},
                        {"max_model_len", model.max_tokens}});
}

void Routes::text(ExchangePtr exchange, bool tokenizing) {
  auto answer = [&model = parts_.model, tokenizing](const std::string& body) {
    return tokenizing ? tokenize(model, body) : detokenize(model, body);
  };
  std::string body = std::move(exchange->request().body);
  if (body.size() <= kInlineBytes) return exchange->respond(answer(body));
  auto work = [&io = parts_.io, exchange, answer, body = std::move(body)]() mutable {
    auto response = std::make_shared<HttpResponse>(error_http(api_error(500, "The text was not read.")));
    try {
      *response = answer(body);
    } catch (const std::exception& e) {
      spdlog::error("a text of {} bytes: {}", body.size(), e.what());
    }
    // The exchange belongs to the I/O thread, its last reference too.
    boost::asio::post(
        io, [exchange = std::move(exchange), response] { exchange->respond(std::move(*response)); });
  };
  if (!parts_.pool.try_run(std::move(work)))
    exchange->respond(error_http(api_error(429, "Too many long texts are being read; try again later.")));
}

}  // namespace lowkey::coordinator
