#include "cli/join.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <optional>

#include "base/log.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::cli {
namespace {

using transport::ConnectionPtr;
using transport::MessageType;

constexpr auto kAttempt = std::chrono::seconds(3);
constexpr auto kAnswer = std::chrono::seconds(20);  // a coordinator that has just started lets it wait
constexpr auto kGoodbye = std::chrono::milliseconds(200);
constexpr auto kPause = std::chrono::milliseconds(500);

// One conversation with the coordinator, on a connection of its own.
class JoinRequest {
 public:
  JoinRequest(const Job& job, const transport::PeerInfo& self)
      : job_(job), timer_(io_), give_up_(patience(job)) {
    options_ = job.control_options(self);
    options_.self.replica = -1;  // no place yet
    options_.self.world_rank = -1;
  }

  Result<wire::Joined> run() {
    transport::ControlHandlers handlers;
    handlers.on_message = [this](const ConnectionPtr&, MessageType type, std::string_view body) {
      wire::Joined joined;
      if (type != MessageType::kJoined || !joined.ParseFromArray(body.data(), static_cast<int>(body.size())))
        return end(Error{Code::kInternal, "the coordinator answered with something else", {}});
      if (joined.refusal().empty()) return end(joined);
      end(Error{static_cast<Code>(joined.refusal_code()), joined.refusal(), {}});
    };
    handlers.on_down = [this](const ConnectionPtr&, const Error& error) {
      end(Error{Code::kUnavailable, "the coordinator went away: " + error.message, {}});
    };
    LOWKEY_ASSIGN(transport, transport::make_ucx_transport(io_, options_, handlers));
    control_ = transport.control.get();
    dial();
    io_.run();
    return *result_;
  }

 private:
  static Deadline patience(const Job& job) {
    return Deadline::in(std::max<Duration>(std::chrono::seconds(job.config.reconnect_seconds), kAttempt));
  }

  Error nobody_answered(const Error& last) const {
    return {last.code, fmt::format("no coordinator has answered within {} s: {}",
                                   job_.config.reconnect_seconds, last.message)};
  }

  void dial() {
    control_->connect(job_.config.join, Deadline::in(kAttempt), [this](Result<ConnectionPtr> peer) {
      if (result_) return;
      if (peer.ok()) return ask(*peer);
      const bool refused = peer.error().code == Code::kUnauthenticated ||
                           peer.error().code == Code::kInvalidArgument || peer.error().code == Code::kUsage;
      if (refused) return end(peer.error());
      if (give_up_.passed()) return end(nobody_answered(peer.error()));
      timer_.expires_after(kPause);
      timer_.async_wait([this](boost::system::error_code) { dial(); });
    });
  }

  void ask(const ConnectionPtr& coordinator) {
    if (coordinator->peer().role != transport::Role::kCoordinator)
      return end(Error{Code::kUsage, "that is no coordinator's cluster port", {}});
    wire::Join join;
    join.set_ranks(static_cast<uint32_t>(job_.plan.ranks.size()));
    if (const Status sent = coordinator->send(MessageType::kJoin, join.SerializeAsString()); !sent.ok())
      return end(sent.error());
    timer_.expires_after(kAnswer);
    timer_.async_wait([this](boost::system::error_code failure) {
      if (!failure) end(Error{Code::kDeadlineExceeded, "no answer from the coordinator", {}});
    });
  }

  void end(Result<wire::Joined> result) {
    if (result_) return;
    result_.emplace(std::move(result));
    control_->shutdown();
    timer_.expires_after(kGoodbye);
    timer_.async_wait([this](boost::system::error_code) { io_.stop(); });
  }

  const Job& job_;
  transport::ControlOptions options_;
  boost::asio::io_context io_{1};
  boost::asio::steady_timer timer_;
  const Deadline give_up_;
  transport::ControlPlane* control_ = nullptr;
  std::optional<Result<wire::Joined>> result_;
};

Error explain(const Job& job, Error error) {
  if (error.code == Code::kUnauthenticated)
    return {Code::kUsage, "--cluster-secret: " + error.message, "cluster-secret"};
  if (error.code == Code::kInvalidArgument && error.message.find("model fingerprint") != std::string::npos)
    return {Code::kBadInput,
            fmt::format("--model {}: expected the model of the cluster, with its --weights: {}",
                        job.config.model, error.message),
            "model"};
  const Code code = error.code == Code::kInvalidArgument ? Code::kUsage : error.code;
  return {code, fmt::format("--join {}: {}", job.config.join, error.message), "join"};
}

}  // namespace

Status join_cluster(Job& job, const transport::PeerInfo& self) {
  wire::Joined joined;
  LOWKEY_TRY(job.together("joining", [&]() -> Status {
    if (job.rank() != 0) return {};
    auto answer = JoinRequest(job, self).run();
    if (!answer.ok()) return explain(job, answer.error());
    joined = *std::move(answer);
    return {};
  }));
  return job.take_place(joined.replica(), joined.first_world_rank());
}

}  // namespace lowkey::cli
