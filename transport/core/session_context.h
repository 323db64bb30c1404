// What the sessions of one plane share. Sessions may outlive the plane (users hold them), so it is theirs
// too; a plane that goes takes its handlers with it.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "transport/control_plane.h"

namespace lowkey::transport {

class Session;

struct SessionContext {
  SessionContext(boost::asio::io_context& io, ControlOptions options, ControlHandlers handlers)
      : io(io), options(std::move(options)), handlers(std::move(handlers)) {}

  boost::asio::io_context& io;
  const ControlOptions options;
  ControlHandlers handlers;
  TransportStats stats;
  std::map<uint64_t, std::shared_ptr<Session>> sessions;  // not down yet
  // The data plane's notice, before on_down: connection id and why.
  std::function<void(uint64_t, const Error&)> down_observer;
  // The data plane's own share of stats().
  std::function<void(TransportStats&)> gauge;
  uint64_t next_id = 1;
};

}  // namespace lowkey::transport
