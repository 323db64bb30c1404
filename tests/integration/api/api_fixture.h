// A coordinator with its I/O thread, a real HTTP port, and scripted leaders behind it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <future>
#include <sstream>

#include "coordinator/api/coordinator.h"
#include "coordinator/api/served_model.h"
#include "coordinator/text/tokenizer.h"
#include "tests/integration/api/http_client.h"
#include "tests/integration/api/scripted_leader.h"
#include "transport/metrics_reporter.h"

namespace lowkey::coordinator {

class ApiTest : public testing::Test {
 protected:
  static const std::shared_ptr<const ServedModel>& model() {
    static const auto loaded = [] {
      auto result = ServedModel::load(LOWKEY_SOURCE_DIR "/deploy/demo-model");
      LOWKEY_CHECK(result.ok(), "{}", result.error().message);
      return *result;
    }();
    return loaded;
  }

  void TearDown() override {
    for (auto& leader : leaders_) leader->stop();
    stop();
    for (int round = 0; round < 2; ++round) {
      for (auto& leader : leaders_) leader->flush();
      io_.poll();
    }
  }

  // Changes to config_ and limits_ come before this.
  void start() {
    coordinator_ = std::make_unique<Coordinator>(io_, config_, model(), metrics_, limits_);
    coordinator_->on_drained = [this] { drained_.set_value(); };
    auto options = control_options(transport::Role::kCoordinator, 0);
    if (notices_silence_) options.missed_heartbeats = transport::ControlOptions().missed_heartbeats;
    auto made = network_->make_transport(io_, std::move(options), coordinator_->control_handlers());
    ASSERT_TRUE(made.ok()) << made.error().message;
    transport_ = std::move(*made);
    coordinator_->metrics_reporter().attach(*transport_.control);
    const Status started = coordinator_->start();
    ASSERT_TRUE(started.ok()) << started.error().message;
    thread_ = std::thread([this] { io_.run(); });
  }

  ScriptedLeader& add_leader(ScriptedLeader::Script script = {}) {
    const int replica = static_cast<int>(leaders_.size());
    leaders_.push_back(std::make_unique<ScriptedLeader>(network_, transport_.control->address(),
                                                        std::move(script), replica));
    return *leaders_.back();
  }
  void start_ready(ScriptedLeader::Script script = {}) {
    start();
    add_leader(std::move(script));
    ASSERT_TRUE(wait_ready());
  }

  template <class F>
  auto on_io(F f) {
    std::promise<decltype(f())> promise;
    boost::asio::post(io_, [&] { promise.set_value(f()); });
    return promise.get_future().get();
  }
  // Asks until the answer satisfies; false when patience ran out.
  template <class Predicate>
  bool eventually(Predicate predicate) {
    for (const auto deadline = Deadline::in(kPatience); !deadline.passed(); std::this_thread::yield())
      if (predicate()) return true;
    return false;
  }
  bool wait_ready(int status = 200) {
    return eventually([&] { return client().get("/ready").status == status; });
  }
  bool wait_in_flight(size_t n) {
    return eventually([&] { return on_io([&] { return coordinator_->in_flight(); }) == n; });
  }
  bool wait_connections(size_t n) {
    return eventually([&] { return on_io([&] { return coordinator_->connections(); }) == n; });
  }
  // The sum of the coordinator's own series of that name which have these labels.
  double metric(const std::string& name, const std::vector<std::string>& labels = {}) {
    ClientAnswer page;
    EXPECT_TRUE(eventually([&] {  // a client that is slow itself may be cut off
      page = client().get("/metrics", "Authorization: Bearer " + config_.api_key + "\r\n");
      return page.status == 200;
    })) << page.body;
    return series(page.body, name, labels);
  }
  static double series(const std::string& page, const std::string& name, std::vector<std::string> labels) {
    labels.push_back(R"(role="coordinator")");
    double sum = 0;
    std::istringstream lines(page);
    for (std::string line; std::getline(lines, line);) {
      const bool all = std::all_of(labels.begin(), labels.end(),
                                   [&](const auto& label) { return line.find(label) != std::string::npos; });
      if (all && line.substr(0, line.find('{')) == name) sum += std::stod(line.substr(line.rfind(' ')));
    }
    return sum;
  }

  HttpClient client() { return HttpClient(coordinator_->port()); }

  bool wait_drained() { return drained_.get_future().wait_for(kPatience) == std::future_status::ready; }

  void stop() {
    if (!thread_.joinable()) return;
    on_io([this] {
      transport_.data.reset();
      transport_.control.reset();
      return 0;
    });
    io_.stop();
    thread_.join();
    coordinator_.reset();
    io_.restart();  // for what the destructor cut
  }

  ServeConfig config_ = [] {
    ServeConfig config;
    config.port = 0;
    return config;
  }();
  ServerOptions limits_;
  bool notices_silence_ = false;  // as soon as the product does
  monitoring::Metrics metrics_{{{"role", "coordinator"}, {"rank", "0"}}};
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{io_.get_executor()};
  std::shared_ptr<transport::LoopbackNetwork> network_ = transport::LoopbackNetwork::create();
  std::unique_ptr<Coordinator> coordinator_;
  transport::LoopbackTransport transport_;
  std::vector<std::unique_ptr<ScriptedLeader>> leaders_;
  std::promise<void> drained_;
  std::thread thread_;
};

}  // namespace lowkey::coordinator
