// A rank of a replica behind the leader: executes the leader's plans and restores, in the order they come.
#pragma once

#include <string>
#include <variant>

#include "base/bounded_queue.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/follower.h"
#include "worker/service/worker_service.h"

namespace lowkey::worker {

class FollowerService final : public WorkerService {
 public:
  using WorkerService::WorkerService;

  EnginePorts ports();
  void set_engine(Follower& follower) { follower_ = &follower; }

  // The step thread's loop: returns when the service has ended, or with the error that broke the follower.
  Status run(Duration step_limit);
  void stop();  // any thread

 private:
  // What the leader sends is executed in its order: a restore may write where an earlier plan still reads.
  using Order = std::variant<wire::StepPlan, wire::RestoreCommand>;
  // The leader is at most one step ahead of its slowest follower, because every step ends in a collective;
  // between two steps it may ask for as many restores as there are waiting sequences.
  static constexpr size_t kMaxOrders = 1024;

  void on_peer(const transport::ConnectionPtr& peer) override;
  void on_message(const transport::ConnectionPtr& peer, transport::MessageType type,
                  std::string_view body) override;
  Status execute(const Order& order);
  void answer(std::string restore_result);

  Follower* follower_ = nullptr;
  transport::ConnectionPtr leader_;
  BoundedQueue<Order> orders_{kMaxOrders};
};

}  // namespace lowkey::worker
