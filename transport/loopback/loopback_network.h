// A network inside one process: the control and data planes of any number of "processes", each with its own
// io_context and thread, with the protocol of the real ones (core/) and faults on demand. For tests and for
// tools that run a whole cluster in one process. Thread rule: every function here may be called from any
// thread; the planes keep theirs.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::transport {

class Link;
class LoopbackLink;
class LoopbackPool;

struct LoopbackTransport {
  std::unique_ptr<ControlPlane> control;
  std::unique_ptr<DataPlane> data;
};

// What is to happen to one put or get. kCutLink: half of its bytes land, then the connection it belongs to
// breaks.
enum class TransferFault { kNone, kFail, kFlipBit, kNeverCompletes, kCutLink };

struct LinkSpeed {
  Duration latency{};           // of messages and of transfers
  double bytes_per_second = 0;  // of transfers, one after the other; 0: as fast as the memory is
};

class LoopbackNetwork : public std::enable_shared_from_this<LoopbackNetwork> {
 public:
  static std::shared_ptr<LoopbackNetwork> create();

  Result<LoopbackTransport> make_transport(boost::asio::io_context& io, ControlOptions options,
                                           ControlHandlers handlers);

  // ---- faults; a process is named by its ControlPlane::address() ----
  void drop(const std::string& address);  // all its connections break, as if it were killed
  // As if it were stopped: nothing it sends or is sent arrives until resume(), then all of it in order.
  // One-sided transfers go on, as they do in shared memory.
  void stall(const std::string& address);
  void resume(const std::string& address);
  // From now on for everything from and to the process; the bytes of a transfer land when its time has come.
  void slow(const std::string& address, const LinkSpeed& speed);
  // Transfers from and to the process wait, in order, until the test lets them land, or its connection
  // breaks.
  void hold_transfers(const std::string& address);
  void let_through(const std::string& address, size_t transfers);  // of those waiting and to come
  void end_hold(const std::string& address);                       // all of them
  size_t transfers_held(const std::string& address);
  // The nth put or get of the whole network from now on; 1 is the next.
  void inject(TransferFault fault, uint64_t nth);

  // ---- for the planes ----
  using Task = std::function<void()>;
  std::string join(boost::asio::io_context& io, std::function<void(std::shared_ptr<Link>)> on_inbound);
  void leave(const std::string& address);
  // Runs the task on the receiver's thread, in order per pair. False when there is no such process.
  bool deliver(const std::string& from, const std::string& to, Task task);
  bool run_at(const std::string& address, Task task);  // as deliver, but no stall holds it back
  bool accept(const std::string& from, const std::string& to, std::shared_ptr<LoopbackLink> link);
  void track(const std::shared_ptr<LoopbackLink>& a, const std::shared_ptr<LoopbackLink>& b);
  uint64_t add_pool(std::weak_ptr<LoopbackPool> pool);
  std::shared_ptr<LoopbackPool> find_pool(uint64_t id);
  TransferFault next_transfer();
  // When a transfer of `bytes` that starts now lands: empty for at once.
  std::optional<TimePoint> landing(const std::string& local, const std::string& remote, size_t bytes);
  // True: the transfer waits, and `land` runs on the thread of `local` when it is let through.
  bool hold(const std::string& local, const std::string& remote, Task land);
  void cut(const std::string& a, const std::string& b);  // their connections break

 private:
  struct Node {
    boost::asio::io_context* io;
    std::function<void(std::shared_ptr<Link>)> on_inbound;
    bool stalled = false;
    LinkSpeed speed;
    TimePoint wire_free{};     // for the next transfer
    TimePoint last_message{};  // its arrival: none overtakes another
    // Messages that wait for a timer: it may have run out without having run, where the receiver is late.
    std::shared_ptr<std::atomic<size_t>> on_timers = std::make_shared<std::atomic<size_t>>(0);
    bool holds_transfers = false;
    size_t passes = 0;                                 // transfers that need not wait
    std::deque<std::pair<std::string, Task>> waiting;  // of whom, and its landing
  };
  struct Held {
    std::string from, to;
    Task task;
  };
  LoopbackNetwork() = default;
  bool stalled(const std::string& address) const;
  void post_after(Node& receiver, Duration latency, Task task);
  void pass_waiting(Node& node);
  void break_links(const std::function<bool(const LoopbackLink&)>& which);

  std::mutex mutex_;
  std::map<std::string, Node> nodes_;
  std::vector<Held> held_;  // messages from or to stalled processes; bounded by the senders' bytes in flight
  std::vector<std::pair<std::weak_ptr<LoopbackLink>, std::weak_ptr<LoopbackLink>>> links_;
  std::map<uint64_t, std::weak_ptr<LoopbackPool>> pools_;
  std::map<uint64_t, TransferFault> faults_;  // by transfer number
  uint64_t transfers_ = 0;
  uint64_t next_id_ = 1;
};

}  // namespace lowkey::transport
