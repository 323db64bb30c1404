// What answers at each endpoint (route_table.h). I/O thread only.
#pragma once

#include <memory>
#include <string>

#include "coordinator/api/api_keys.h"
#include "coordinator/http/exchange.h"

namespace boost::asio {
class io_context;
}

namespace lowkey::coordinator {

class Explainer;
class Generations;
class Membership;
class MetricsPage;
class WorkPool;
struct ServedModel;

class Routes final : public HttpHandler {
 public:
  struct Parts {
    boost::asio::io_context& io;
    const ServedModel& model;
    Membership& membership;
    Generations& generations;
    const Explainer& explainer;
    MetricsPage& metrics_page;
    WorkPool& pool;
  };
  // `api_keys`: comma-separated; none: no check. What `parts` refers to outlives this.
  Routes(Parts parts, std::string_view api_keys) : parts_(parts), keys_(api_keys) {}

  void set_draining() { draining_ = true; }

  std::optional<HttpResponse> screen(HttpRequest& request) override;
  void handle(ExchangePtr exchange) override;
  HttpResponse error_response(int status, const std::string& message) override;

 private:
  HttpResponse ready() const;
  HttpResponse models() const;
  HttpResponse model(const std::string& id) const;
  void text(ExchangePtr exchange, bool tokenize);

  Parts parts_;
  ApiKeys keys_;
  bool draining_ = false;
};

}  // namespace lowkey::coordinator
