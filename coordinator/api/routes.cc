#include "coordinator/api/routes.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/json.hpp>

#include "base/version.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/explainer.h"
#include "coordinator/api/generations.h"
#include "coordinator/api/metrics_page.h"
#include "coordinator/api/percent.h"
#include "coordinator/api/route_table.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"
#include "coordinator/membership/membership.h"
#include "coordinator/text/tokenizer.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

// Bodies up to this size are tokenized on the I/O thread.
constexpr size_t kInlineBytes = 16 << 10;

HttpResponse json_response(const json::value& value, int status = 200) {
  return HttpResponse{.status = status, .body = json::serialize(value)};
}

HttpResponse tokenize(const ServedModel& model, const std::string& body) {
  auto request = parse_tokenize(body);
  if (!request.ok()) return error_http(api_error(request.error()));
  if (!request->model.empty() && request->model != model.id)
    return error_http(model_not_found(request->model, model.id));
  auto ids = encode(model, *request);
  if (!ids.ok()) return error_http(api_error(ids.error()));
  return json_response(
      {{"count", ids->size()}, {"max_model_len", model.max_tokens}, {"tokens", json::value_from(*ids)}});
}

HttpResponse detokenize(const ServedModel& model, const std::string& body) {
  auto request = parse_detokenize(body);
  if (!request.ok()) return error_http(api_error(request.error()));
  if (!request->model.empty() && request->model != model.id)
    return error_http(model_not_found(request->model, model.id));
  return json_response({{"prompt", model.tokenizer->decode(request->tokens, false)}});
}

}  // namespace

std::optional<HttpResponse> Routes::screen(HttpRequest& request) {
  return coordinator::screen(request, keys_);
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
  if (id != model.id) return error_http(model_not_found(id, model.id));
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
