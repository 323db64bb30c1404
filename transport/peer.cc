#include "transport/peer.h"

#include "base/check.h"

namespace lowkey::transport {

const char* to_string(Role role) {
  switch (role) {
    case Role::kCoordinator: return "coordinator";
    case Role::kWorker: return "worker";
    case Role::kStore: return "store";
  }
  LOWKEY_CHECK(false, "role {}", static_cast<int>(role));
}

}  // namespace lowkey::transport
