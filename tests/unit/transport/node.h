// One "process" of a transport test: an I/O thread, the two planes, and a record of what the handlers saw.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::transport {

inline constexpr Duration kPatience = std::chrono::seconds(20);  // for what must happen; loaded machines

inline ControlOptions test_options(Role role = Role::kWorker, int world_rank = 0) {
  ControlOptions options;
  options.self.role = role;
  options.self.world_rank = world_rank;
  options.self.host = "one-host";
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.missed_heartbeats = 60;  // a thread that is not scheduled for seconds is not dead
  options.handshake_deadline = kPatience;
  return options;
}

class Node {
 public:
  struct Received {
    uint64_t connection;
    MessageType type;
    std::string body;
  };
  struct Down {
    uint64_t connection;
    Error error;
  };
  using Make = std::function<Result<std::pair<std::unique_ptr<ControlPlane>, std::unique_ptr<DataPlane>>>(
      boost::asio::io_context&, ControlOptions, ControlHandlers)>;

  Node(const Make& make, const ControlOptions& options) : work_(io_.get_executor()) {
    ControlHandlers handlers;
    handlers.on_up = [this](const ConnectionPtr& peer) { record([&] { ups_.push_back(peer); }); };
    handlers.on_message = [this](const ConnectionPtr& peer, MessageType type, std::string_view body) {
      record([&] { messages_.push_back({peer->id(), type, std::string(body)}); });
      if (on_message) on_message(peer, type, body);
    };
    handlers.on_attested = [this](const ConnectionPtr&, const Attestation& path) {
      record([&] { paths_.push_back(path); });
    };
    handlers.on_down = [this](const ConnectionPtr& peer, const Error& error) {
      record([&] { downs_.push_back({peer->id(), error}); });
    };
    auto planes = make(io_, options, std::move(handlers));
    if (!planes.ok()) throw std::runtime_error(planes.error().message);
    control = std::move(planes->first);
    data = std::move(planes->second);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Node() { stop(); }

  // Runs f on the I/O thread and returns its value.
  template <class F>
  auto on_io(F f) {
    std::promise<decltype(f())> promise;
    boost::asio::post(io_, [&] { promise.set_value(f()); });
    return promise.get_future().get();
  }

  void stop() {
    if (!thread_.joinable()) return;
    on_io([this] {
      data.reset();
      control.reset();
      return 0;
    });
    work_.reset();
    io_.stop();
    thread_.join();
  }

  Result<ConnectionPtr> connect(const std::string& address, Duration patience = kPatience) {
    std::promise<Result<ConnectionPtr>> promise;
    boost::asio::post(io_, [&] {
      control->connect(address, Deadline::in(patience),
                       [&](Result<ConnectionPtr> result) { promise.set_value(std::move(result)); });
    });
    return promise.get_future().get();
  }

  Status send(const ConnectionPtr& peer, MessageType type, std::string body) {
    return on_io([&] { return peer->send(type, std::move(body)); });
  }

  using Transfers = std::vector<Transfer>;
  Status put(const std::shared_ptr<RemotePool>& pool, Transfers batch, Duration patience = kPatience,
             std::shared_ptr<void> keep_alive = nullptr) {
    return transfer(&DataPlane::put, pool, std::move(batch), patience, std::move(keep_alive));
  }
  Status get(const std::shared_ptr<RemotePool>& pool, Transfers batch, Duration patience = kPatience,
             std::shared_ptr<void> keep_alive = nullptr) {
    return transfer(&DataPlane::get, pool, std::move(batch), patience, std::move(keep_alive));
  }

  // Waits until the predicate over the records holds; false when patience ran out.
  template <class Predicate>
  bool eventually(Predicate predicate, Duration patience = kPatience) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, Deadline::in(patience).at(), predicate);
  }
  std::vector<ConnectionPtr> ups() { return copy(ups_); }
  std::vector<Received> messages() { return copy(messages_); }
  std::vector<Down> downs() { return copy(downs_); }
  std::vector<Attestation> paths() { return copy(paths_); }
  bool wait_ups(size_t n) {
    return eventually([&] { return ups_.size() >= n; });
  }
  bool wait_messages(size_t n) {
    return eventually([&] { return messages_.size() >= n; });
  }
  bool wait_paths(size_t n) {
    return eventually([&] { return paths_.size() >= n; });
  }
  bool wait_downs(size_t n, Duration patience = kPatience) {
    return eventually([&] { return downs_.size() >= n; }, patience);
  }
  TransportStats stats() {
    return on_io([&] { return control->stats(); });
  }
  boost::asio::io_context& io() { return io_; }

  std::function<void(const ConnectionPtr&, MessageType, std::string_view)> on_message;  // set before traffic
  std::unique_ptr<ControlPlane> control;
  std::unique_ptr<DataPlane> data;

 private:
  template <class Method>
  Status transfer(Method method, const std::shared_ptr<RemotePool>& pool, Transfers batch, Duration patience,
                  std::shared_ptr<void> keep_alive) {
    std::promise<Status> promise;
    boost::asio::post(io_, [&] {
      (data.get()->*method)(pool, std::move(batch), Deadline::in(patience), std::move(keep_alive),
                            [&](Status status) { promise.set_value(std::move(status)); });
    });
    return promise.get_future().get();
  }
  template <class F>
  void record(F f) {
    std::lock_guard lock(mutex_);
    f();
    changed_.notify_all();
  }
  template <class T>
  T copy(const T& records) {
    std::lock_guard lock(mutex_);
    return records;
  }

  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ConnectionPtr> ups_;
  std::vector<Received> messages_;
  std::vector<Down> downs_;
  std::vector<Attestation> paths_;
  std::thread thread_;
};

}  // namespace lowkey::transport
