// What a transfer needs of the store that it talks to.
#pragma once

#include <boost/asio/io_context.hpp>

#include <memory>
#include <span>

#include "kvstore/service/page_io.h"
#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::kvstore {

struct StoreLink {
  boost::asio::io_context& io;
  transport::DataPlane& data;
  transport::ConnectionPtr connection;
  std::shared_ptr<transport::RemotePool> pool;

  bool inside(uint64_t offset, uint64_t bytes) const {
    return bytes <= pool->size() && offset <= pool->size() - bytes;
  }
};

}  // namespace lowkey::kvstore
