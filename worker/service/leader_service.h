// The leader of a replica: takes requests from the coordinator, runs the engine's steps, tells followers what
// to execute and the coordinator what came out.
#pragma once

#include <atomic>
#include <map>

#include "worker/engine/engine.h"
#include "worker/service/worker_service.h"

namespace lowkey::wire {
class CostRates;
}

namespace lowkey::worker {

class LeaderService final : public WorkerService {
 public:
  using WorkerService::WorkerService;

  EnginePorts ports();
  // Before any peer connects; the engine outlives the service's last callback.
  void set_engine(Engine& engine) { engine_ = &engine; }

  // The step thread's loop: returns when the service has ended, or with the error that broke the engine.
  Status run(Duration step_limit);
  void stop();                         // any thread
  void forget_coordinator() override;  // ends its requests; the next one is told the state anew

 private:
  void on_peer(const transport::ConnectionPtr& peer) override;
  void on_message(const transport::ConnectionPtr& peer, transport::MessageType type,
                  std::string_view body) override;
  void on_submit(std::string_view body);
  void refuse(uint64_t request_id, const Error& error);
  void on_restore_result(const transport::ConnectionPtr& peer, std::string_view body);
  void send_to_followers(transport::MessageType type, std::string body);
  void send_to_coordinator(transport::MessageType type, std::string body);
  void report_state();  // any thread
  void fill_rates(const MeasuredRates& now, wire::CostRates* out);

  Engine* engine_ = nullptr;
  transport::ConnectionPtr coordinator_;
  std::map<int, transport::ConnectionPtr> followers_;  // by replica rank
  std::atomic<bool> stopped_ = false;
  std::string last_state_;  // as the coordinator knows it
  MeasuredRates rates_;     // the same
  TimePoint rates_sent_{};
  bool was_ready_ = false;
};

}  // namespace lowkey::worker
