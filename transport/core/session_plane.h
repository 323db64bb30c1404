// The control plane over any kind of link: accepts, connects, and keeps the sessions.
// No callback comes after the plane's destruction; a callback must not destroy it.
#pragma once

#include <memory>

#include "transport/control_plane.h"
#include "transport/core/link.h"

namespace lowkey::transport {

struct SessionContext;
class Session;

// Peers that have not proven the secret: this many at a time, each for ControlOptions::handshake_deadline.
inline constexpr uint32_t kMaxHandshakes = 64;

class SessionPlane final : public ControlPlane {
 public:
  SessionPlane(std::shared_ptr<SessionContext> context, std::unique_ptr<LinkProvider> links);
  ~SessionPlane() override;

  std::string address() const override;
  void connect(const std::string& address, Deadline deadline,
               std::function<void(Result<ConnectionPtr>)> done) override;
  void shutdown() override;
  TransportStats stats() const override;

 private:
  void accept(std::shared_ptr<Link> link);

  const std::shared_ptr<SessionContext> context_;
  const std::unique_ptr<LinkProvider> links_;
};

// Refuses options that cannot work: a short secret, a bound or an interval of zero.
Status validate(const ControlOptions& options);

}  // namespace lowkey::transport
