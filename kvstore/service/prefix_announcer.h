// Tells the coordinator which pages this store holds, in memory or on disk, so that requests are routed to
// where their prefix is: PrefixEvents of the slices of rank 0. Changes of a moment travel together; what
// comes and goes between two messages is not told at all. When more changes than the bound wait, or a message
// cannot be sent, all that is held is told anew, with `reset`. Thread rule: the I/O thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/hash128.h"
#include "transport/control_plane.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::kvstore {

class PrefixAnnouncer {
 public:
  static constexpr size_t kMaxPending = 65536;
  static constexpr size_t kMaxPerMessage = 32768;  // identities: half a MiB
  // Told at once: no index of a coordinator takes more, and with more of them in flight the connection would
  // refuse some every time.
  static constexpr size_t kMaxAnnounced = 1 << 20;
  enum Holder : uint8_t { kMemory = 1, kDisk = 2 };

  PrefixAnnouncer(boost::asio::io_context& io, monitoring::Metrics& metrics, Duration delay, Duration retry,
                  size_t max_announced = kMaxAnnounced);

  void changed(const Hash128& identity, Holder holder, bool held);
  // The coordinator's connection; told everything at once. Null: there is none, and nothing is told.
  void connect(transport::ConnectionPtr coordinator);
  ~PrefixAnnouncer() { *self_ = nullptr; }
  void resync();  // PrefixResync: everything, with `reset`
  size_t num_held() const { return held_.size(); }

 private:
  struct Page {
    uint8_t holders = 0;
    bool announced = false;
  };

  void flush();
  bool send(bool reset, const std::vector<Hash128>& added, const std::vector<Hash128>& removed);
  void send_all();
  void arm(Duration delay);

  monitoring::Metrics& metrics_;
  const Duration delay_, retry_;
  const size_t max_announced_;
  transport::ConnectionPtr coordinator_;
  boost::asio::steady_timer timer_;
  const std::shared_ptr<PrefixAnnouncer*> self_;  // of a timer that fires while this object goes
  bool armed_ = false;
  bool reset_ = false;  // everything is to be told
  uint64_t sequence_ = 0;
  std::unordered_map<Hash128, Page> held_;  // held, or announced and not yet taken back
  std::vector<Hash128> pending_;            // may differ from what was announced
};

}  // namespace lowkey::kvstore
