// A worker's or store's ties to the cluster, around what its service does with them: it tells the coordinator
// where it can be reached, a worker keeps a connection to every store that the coordinator names, and a
// process that loses the coordinator dials it again for a while.
//
// Thread rule: I/O thread, or before it runs.
#pragma once

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "base/deadline.h"
#include "transport/control_plane.h"

namespace lowkey::cli {

class ClusterMember {
 public:
  struct Options {
    transport::Role role = transport::Role::kWorker;
    Duration reconnect{};  // how long a lost coordinator is dialled; 0: its loss is final
    // The coordinator is lost and being dialled: nothing that was under way for it matters any more. The
    // wrapped on_down is not called for this loss.
    std::function<void()> on_coordinator_lost;
    std::function<void(const std::set<int>&)> on_stores = {};  // those that a worker was told, by world rank
    std::function<void(const Error&)> on_gave_up;  // nobody was there in that time: this process should end
  };

  ClusterMember(boost::asio::io_context& io, Options options);

  transport::ControlHandlers wrap(transport::ControlHandlers inner);
  void attach(transport::ControlPlane& control);  // outlives its last callback here

  // The coordinator's control address; `dial`: this side connects (otherwise the coordinator does).
  void set_coordinator(const std::string& address, bool dial);
  // By world rank. Those that are not connected yet are dialled, for as long as they are named.
  void set_stores(std::map<int, std::string> addresses);

  // The store at its present address is not dialled again.
  void refuse_store(int rank) { refused_[rank] = stores_[rank]; }

  // Tells the coordinator that this replica, or store, wants to go. It answers a replica by closing the
  // connections, and sends nobody new to a store. False: there is no coordinator to tell.
  bool ask_to_leave(int drain_seconds);
  // At any time since the start: the coordinator's rank of the MPI job, if it has one, may be gone.
  bool coordinator_was_lost() const { return was_lost_; }
  // The coordinator has let this replica go, and goes on without it. Any thread.
  bool was_let_go() const { return was_let_go_; }

 private:
  void up(const transport::ConnectionPtr& peer);
  void down(const transport::ConnectionPtr& peer, const Error& error);
  void read_stores(std::string_view body);
  void begin_dialling(Duration patience);
  void dial_coordinator();
  void on_dialled(const Error& error);
  void dial_stores();
  void dial_stores_later();

  const Options options_;
  boost::asio::io_context& io_;
  transport::ControlHandlers inner_;
  transport::ControlPlane* control_ = nullptr;

  std::string coordinator_address_;
  transport::ConnectionPtr coordinator_;  // null while it is not connected
  Deadline give_up_;
  Duration pause_{};  // before the next attempt
  boost::asio::steady_timer coordinator_timer_;
  bool was_lost_ = false;
  std::atomic<bool> was_let_go_ = false;

  std::map<int, std::string> stores_;
  std::map<int, transport::ConnectionPtr> connected_stores_;
  std::map<int, std::string> refused_;
  std::set<int> dialling_;
  std::set<int> leaving_;  // connected stores that have said so
  boost::asio::steady_timer stores_timer_;
  bool stores_timer_armed_ = false;
};

}  // namespace lowkey::cli
