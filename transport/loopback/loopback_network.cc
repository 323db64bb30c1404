#include "transport/loopback/loopback_network.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include "base/log.h"
#include "transport/core/session_context.h"
#include "transport/core/session_plane.h"
#include "transport/loopback/loopback_data_plane.h"
#include "transport/loopback/loopback_link.h"

namespace lowkey::transport {

std::shared_ptr<LoopbackNetwork> LoopbackNetwork::create() {
  return std::shared_ptr<LoopbackNetwork>(new LoopbackNetwork());
}

Result<LoopbackTransport> LoopbackNetwork::make_transport(boost::asio::io_context& io, ControlOptions options,
                                                          ControlHandlers handlers) {
  LOWKEY_TRY(validate(options));
  auto context = std::make_shared<SessionContext>(io, std::move(options), std::move(handlers));
  auto links = std::make_unique<LoopbackLinkProvider>(io, shared_from_this());
  LoopbackTransport transport;
  transport.control = std::make_unique<SessionPlane>(context, std::move(links));
  transport.data = std::make_unique<LoopbackDataPlane>(context, shared_from_this());
  return transport;
}

std::string LoopbackNetwork::join(boost::asio::io_context& io,
                                  std::function<void(std::shared_ptr<Link>)> on_inbound) {
  std::lock_guard lock(mutex_);
  std::string address = "loopback:" + std::to_string(next_id_++);
  nodes_.emplace(address, Node{&io, std::move(on_inbound)});
  return address;
}

void LoopbackNetwork::leave(const std::string& address) {
  std::vector<Held> dropped;  // destroyed after the lock: tasks own links, which may call back
  std::lock_guard lock(mutex_);
  nodes_.erase(address);
  std::erase_if(held_, [&](Held& held) {
    if (held.from != address && held.to != address) return false;
    dropped.push_back(std::move(held));
    return true;
  });
}

bool LoopbackNetwork::stalled(const std::string& address) const {
  const auto node = nodes_.find(address);
  return node != nodes_.end() && node->second.stalled;
}

bool LoopbackNetwork::deliver(const std::string& from, const std::string& to, Task task) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(to);
  if (node == nodes_.end()) return false;
  if (stalled(from) || node->second.stalled) {
    held_.push_back({from, to, std::move(task)});
    return true;
  }
  const auto sender = nodes_.find(from);
  const Duration other = sender == nodes_.end() ? Duration::zero() : sender->second.speed.latency;
  post_after(node->second, std::max(node->second.speed.latency, other), std::move(task));
  return true;
}

// Arrivals at one process keep their order: each is later than the one before, and timers run by time.
void LoopbackNetwork::post_after(Node& receiver, Duration latency, Task task) {
  const TimePoint now = Clock::now();
  if (latency <= Duration::zero() && *receiver.on_timers == 0) {
    boost::asio::post(*receiver.io, std::move(task));
    return;
  }
  receiver.last_message = std::max(now + latency, receiver.last_message + Duration(1));
  auto timer = std::make_shared<boost::asio::steady_timer>(*receiver.io, receiver.last_message);
  ++*receiver.on_timers;
  timer->async_wait(
      [timer, waiting = receiver.on_timers, task = std::move(task)](boost::system::error_code failure) {
        if (!failure) task();
        --*waiting;
      });
}

bool LoopbackNetwork::run_at(const std::string& address, Task task) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node == nodes_.end()) return false;
  boost::asio::post(*node->second.io, std::move(task));
  return true;
}

bool LoopbackNetwork::accept(const std::string& from, const std::string& to,
                             std::shared_ptr<LoopbackLink> link) {
  return deliver(from, to, [self = shared_from_this(), to, link = std::move(link)] {
    std::function<void(std::shared_ptr<Link>)> on_inbound;
    {
      std::lock_guard lock(self->mutex_);
      const auto node = self->nodes_.find(to);
      if (node != self->nodes_.end()) on_inbound = node->second.on_inbound;
    }
    if (on_inbound) on_inbound(link);
  });
}

void LoopbackNetwork::track(const std::shared_ptr<LoopbackLink>& a, const std::shared_ptr<LoopbackLink>& b) {
  std::lock_guard lock(mutex_);
  std::erase_if(links_, [](const auto& pair) { return pair.first.expired() && pair.second.expired(); });
  links_.emplace_back(a, b);
}

void LoopbackNetwork::drop(const std::string& address) {
  break_links([&](const LoopbackLink& link) { return link.local() == address || link.remote() == address; });
}

void LoopbackNetwork::cut(const std::string& a, const std::string& b) {
  break_links([&](const LoopbackLink& link) {
    return (link.local() == a && link.remote() == b) || (link.local() == b && link.remote() == a);
  });
}

void LoopbackNetwork::break_links(const std::function<bool(const LoopbackLink&)>& which) {
  std::vector<std::shared_ptr<LoopbackLink>> broken;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [weak_a, weak_b] : links_) {
      const auto a = weak_a.lock(), b = weak_b.lock();
      const auto& any = a ? a : b;
      if (!any || !which(*any)) continue;
      if (a) broken.push_back(a);
      if (b) broken.push_back(b);
    }
  }
  for (auto& link : broken) {
    run_at(link->local(), [link] { link->fail({Code::kUnavailable, "connection reset by peer"}); });
  }
}

void LoopbackNetwork::stall(const std::string& address) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node != nodes_.end()) node->second.stalled = true;
}

void LoopbackNetwork::resume(const std::string& address) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node == nodes_.end()) return;
  node->second.stalled = false;
  std::vector<Held> still_held;
  for (Held& held : held_) {
    if (stalled(held.from) || stalled(held.to)) {
      still_held.push_back(std::move(held));
    } else {
      post_after(nodes_.at(held.to), Duration::zero(), std::move(held.task));
    }
  }
  held_ = std::move(still_held);
}

void LoopbackNetwork::slow(const std::string& address, const LinkSpeed& speed) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node != nodes_.end()) node->second.speed = speed;
}

std::optional<TimePoint> LoopbackNetwork::landing(const std::string& local, const std::string& remote,
                                                  size_t bytes) {
  std::lock_guard lock(mutex_);
  std::optional<TimePoint> latest;
  for (const std::string* address : {&local, &remote}) {
    const auto node = nodes_.find(*address);
    if (node == nodes_.end()) continue;
    const LinkSpeed& speed = node->second.speed;
    if (speed.latency <= Duration::zero() && speed.bytes_per_second <= 0) continue;
    TimePoint& free = node->second.wire_free;
    free = std::max(free, Clock::now());
    if (speed.bytes_per_second > 0) {
      free += std::chrono::duration_cast<Duration>(
          std::chrono::duration<double>(static_cast<double>(bytes) / speed.bytes_per_second));
    }
    const TimePoint lands = free + speed.latency;
    latest = latest ? std::max(*latest, lands) : lands;
  }
  return latest;
}

void LoopbackNetwork::hold_transfers(const std::string& address) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node == nodes_.end()) return;
  node->second.holds_transfers = true;
  node->second.passes = 0;
}

void LoopbackNetwork::let_through(const std::string& address, size_t transfers) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node == nodes_.end()) return;
  node->second.passes += transfers;
  pass_waiting(node->second);
}

void LoopbackNetwork::end_hold(const std::string& address) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  if (node == nodes_.end()) return;
  node->second.holds_transfers = false;
  node->second.passes = node->second.waiting.size();
  pass_waiting(node->second);
}

size_t LoopbackNetwork::transfers_held(const std::string& address) {
  std::lock_guard lock(mutex_);
  const auto node = nodes_.find(address);
  return node == nodes_.end() ? 0 : node->second.waiting.size();
}

void LoopbackNetwork::pass_waiting(Node& node) {
  while (node.passes > 0 && !node.waiting.empty()) {
    auto [of, land] = std::move(node.waiting.front());
    node.waiting.pop_front();
    --node.passes;
    if (const auto owner = nodes_.find(of); owner != nodes_.end()) {
      boost::asio::post(*owner->second.io, std::move(land));
    }
  }
}

bool LoopbackNetwork::hold(const std::string& local, const std::string& remote, Task land) {
  std::lock_guard lock(mutex_);
  for (const std::string* address : {&remote, &local}) {
    const auto node = nodes_.find(*address);
    if (node == nodes_.end() || !node->second.holds_transfers) continue;
    if (node->second.passes > 0) {
      --node->second.passes;
      return false;
    }
    node->second.waiting.emplace_back(local, std::move(land));
    return true;
  }
  return false;
}

uint64_t LoopbackNetwork::add_pool(std::weak_ptr<LoopbackPool> pool) {
  std::lock_guard lock(mutex_);
  const uint64_t id = next_id_++;
  pools_.emplace(id, std::move(pool));
  return id;
}

std::shared_ptr<LoopbackPool> LoopbackNetwork::find_pool(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto pool = pools_.find(id);
  return pool == pools_.end() ? nullptr : pool->second.lock();
}

void LoopbackNetwork::inject(TransferFault fault, uint64_t nth) {
  std::lock_guard lock(mutex_);
  faults_[transfers_ + nth] = fault;
}

TransferFault LoopbackNetwork::next_transfer() {
  std::lock_guard lock(mutex_);
  const auto fault = faults_.find(++transfers_);
  return fault == faults_.end() ? TransferFault::kNone : fault->second;
}

}  // namespace lowkey::transport
