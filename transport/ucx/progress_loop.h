// Drives a worker from an io_context: blocked on the worker's armed event descriptor while there is nothing
// to do, so that an idle process costs nothing.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>

#include "transport/ucx/worker.h"

namespace lowkey::transport {

class ProgressLoop : public std::enable_shared_from_this<ProgressLoop> {
 public:
  ProgressLoop(boost::asio::io_context& io, std::shared_ptr<Worker> worker);
  ~ProgressLoop();  // before the io_context

  // After any UCX call made from outside a turn: it may have left work that no event announces.
  void kick();

 private:
  void turn(int quiet_rounds);
  void wait();

  boost::asio::io_context& io_;
  const std::shared_ptr<Worker> worker_;
  boost::asio::posix::stream_descriptor descriptor_;
  bool posted_ = false;
  bool waiting_ = false;
};

}  // namespace lowkey::transport
