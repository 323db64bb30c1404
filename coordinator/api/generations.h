// Every completion and chat request from its arrival to its last byte: admission, reading, routing, Submit,
// tokens back, Cancel when the client leaves or a stop string is found. When a replica is lost, what it was
// answering goes on elsewhere: from the start where nothing of the answer has arrived, otherwise from its
// tokens so far, each at most once. I/O thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "coordinator/api/api_error.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/http/exchange.h"

namespace boost::asio {
class io_context;
}
namespace lowkey::wire {
class TokenEvents;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

class Admission;
class Explainer;
class Membership;
class Router;
class WorkPool;
struct ServedModel;

class Generations {
 public:
  struct Parts {
    boost::asio::io_context& io;
    const ServedModel& model;
    Membership& membership;
    Router& router;
    Explainer& explainer;
    Admission& admission;
    WorkPool& pool;
    monitoring::Metrics& metrics;
  };
  explicit Generations(Parts parts);  // all of them outlive it
  ~Generations();

  // `tenant`: of its API key (ApiKeys); empty where there are none.
  void begin(ExchangePtr exchange, Endpoint endpoint, std::string tenant);
  void on_events(int replica, const wire::TokenEvents& events);
  // What that replica was answering is sent elsewhere, or ends now.
  void on_replica_lost(int replica, const std::string& reason);

  size_t in_flight() const;
  // From now on nothing begins; `idle` is called once nothing is in flight (possibly at once).
  void drain(std::function<void()> idle);
  // Ends whatever is left with this error.
  void fail_all(const ApiError& error);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace lowkey::coordinator
