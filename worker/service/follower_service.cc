#include "worker/service/follower_service.h"

#include "base/exit_now.h"
#include "base/log.h"
#include "base/watchdog.h"

namespace lowkey::worker {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

EnginePorts FollowerService::ports() {
  EnginePorts ports;
  fill_ports(ports);
  return ports;
}

Status FollowerService::run(Duration step_limit) {
  Watchdog watchdog(step_limit, [] {
    spdlog::critical("a step is beyond its deadline: this rank gives up");
    exit_now(4);
  });
  while (!orders_.closed()) {
    const auto order = orders_.pop(Deadline::in(std::chrono::hours(1)));
    if (!order) continue;
    watchdog.begin();
    const Status executed = execute(*order);
    watchdog.end();
    if (!executed.ok()) return executed;
  }
  return {};
}

void FollowerService::stop() {
  orders_.close();
}

Status FollowerService::execute(const Order& order) {
  if (const auto* plan = std::get_if<wire::StepPlan>(&order)) return follower_->execute(*plan);
  follower_->restore(std::get<wire::RestoreCommand>(order), [this](const wire::RestoreResult& result) {
    post([this, reply = result.SerializeAsString()]() mutable { answer(std::move(reply)); });
  });
  return {};
}

// The leader keeps the pages of a restore, and asks for no other, until every rank has answered: an answer
// that is lost would be owed for good.
void FollowerService::answer(std::string restore_result) {
  if (!leader_) return;  // nobody has asked
  if (const Status sent = leader_->send(MessageType::kRestoreResult, std::move(restore_result)); !sent.ok())
    end({Code::kUnavailable, "leader of the replica: " + sent.error().message, {}});
}

void FollowerService::on_peer(const ConnectionPtr& peer) {
  if (peer->peer().role == Role::kWorker) leader_ = peer;
  if (peer->peer().role == Role::kCoordinator) reporter().set_ready();
}

void FollowerService::on_message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  Order order;
  bool known = false;
  if (peer == leader_ && type == MessageType::kStepPlan) {
    known = order.emplace<wire::StepPlan>().ParseFromArray(body.data(), static_cast<int>(body.size()));
  } else if (peer == leader_ && type == MessageType::kRestoreCommand) {
    known = order.emplace<wire::RestoreCommand>().ParseFromArray(body.data(), static_cast<int>(body.size()));
  }
  if (!known) {
    return spdlog::warn("message {} from {} {} makes no sense here", static_cast<int>(type),
                        to_string(peer->peer().role), peer->peer().world_rank);
  }
  if (!orders_.try_push(std::move(order)) && !orders_.closed()) {
    end({Code::kInternal,
         fmt::format("more than {} orders queued: this rank does not keep up", kMaxOrders),
         {}});
  }
}

}  // namespace lowkey::worker
