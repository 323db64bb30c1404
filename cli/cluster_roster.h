// Who is in the cluster, as its coordinator keeps it around what coordinator/ does with them: gives later
// replicas their place, tells workers where the stores are, lets replicas go, and notices when nothing is
// left to coordinate. A coordinator that has been started anew learns all of it from those who dial it.
//
// Thread rule: I/O thread.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/deadline.h"
#include "transport/control_plane.h"

namespace lowkey::coordinator {
class Membership;
struct Seat;
}  // namespace lowkey::coordinator

namespace lowkey::cli {

class ClusterRoster {
 public:
  struct Options {
    int job_ranks = 1;     // ranks of this process's own MPI job: their departure matters to its end
    int job_replicas = 0;  // replicas of that job
    bool open = false;     // others may come: no replica left is no reason to end
    bool alone = false;    // started without workers of its own: whoever dials with a place is adopted
    Duration reconnect{};  // how long those who lose this coordinator dial it
    // From the connection to its Join, and from the answer to its hanging up: nobody keeps one of the few
    // places to ask from for longer.
    Duration join_deadline = std::chrono::seconds(10);
    // A coordinator that starts without workers cannot know yet which numbers those hold who will dial it:
    // they notice the loss of its predecessor within 4 s, and dial once a second.
    Duration settle = std::chrono::seconds(6);
  };
  static constexpr size_t kMaxJoining = 64;  // connections at a time of those who ask for a place

  // `membership` outlives it, and keeps the numbers that are given out.
  ClusterRoster(boost::asio::io_context& io, coordinator::Membership& membership, const Options& options);

  transport::ControlHandlers wrap(transport::ControlHandlers inner);
  std::function<void()> on_none_left;  // no replica for a while, and none can come

  int departures() const { return departures_; }  // of own ranks, lost or let go, other than at the end
  void end();  // the cluster is ending on purpose: who leaves from now on is not lost

 private:
  struct Member {
    transport::ConnectionPtr connection;
    std::string control_address;  // empty until it has introduced itself
  };
  using Key = std::pair<transport::Role, int>;  // with the world rank
  // A process without a place, for as long as it is connected.
  struct Visitor {
    transport::ConnectionPtr connection;
    boost::asio::steady_timer timer;  // until it has to ask, until it is answered, until it has to go
    uint64_t waits = 0;               // that it has been used for
    bool asked = false;
  };
  using Visitors = std::map<uint64_t, Visitor>;  // by connection

  void up(const transport::ConnectionPtr& peer);
  void message(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  void down(const transport::ConnectionPtr& peer, const Error& error);

  void visit(const transport::ConnectionPtr& peer);
  void expect(Visitors::iterator visitor, const char* what);
  void wait(Visitors::iterator visitor, TimePoint until, std::function<void(Visitors::iterator)> then);
  void on_join(const transport::ConnectionPtr& peer, std::string_view body);
  void answer(Visitors::iterator visitor, int ranks);
  Result<coordinator::Seat> seat_of(const transport::PeerInfo& peer, int ranks);
  Status may_join(const transport::PeerInfo& peer) const;
  void introduce(const transport::ConnectionPtr& peer, std::string_view body);
  void on_leave(const transport::ConnectionPtr& peer, std::string_view body);
  void let_go(int replica);
  void send_stores(const transport::ConnectionPtr& worker) const;
  void tell_stores() const;
  void lose(const transport::PeerInfo& peer);

  const Options options_;
  boost::asio::io_context& io_;
  coordinator::Membership& membership_;
  const TimePoint settled_;
  transport::ControlHandlers inner_;
  std::map<Key, Member> members_;
  std::set<uint64_t> replaced_;  // connections whose loss has been told already
  Visitors joining_;
  std::map<int, std::shared_ptr<boost::asio::steady_timer>> leaving_;  // with the end of its patience
  std::set<int> leaving_stores_;  // by world rank: no worker is sent to them any more
  boost::asio::steady_timer none_left_;
  std::set<int> replicas_, broken_;  // ever seen; without one of their ranks
  int departures_ = 0;
  bool ending_ = false;
};

}  // namespace lowkey::cli
