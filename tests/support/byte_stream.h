// A client's bytes as Boost.Beast reads them: in pieces of at most `piece`, then their end.
#pragma once

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/system/system_error.hpp>
#include <string_view>

namespace lowkey::test {

class ByteStream {
 public:
  ByteStream(std::string_view bytes, size_t piece) : rest_(bytes), piece_(piece) {}

  template <class Buffers>
  size_t read_some(const Buffers& to, boost::system::error_code& failure) {
    failure = {};
    const size_t n =
        boost::asio::buffer_copy(to, boost::asio::const_buffer(rest_.data(), std::min(piece_, rest_.size())));
    rest_.remove_prefix(n);
    if (n == 0 && rest_.empty()) failure = boost::asio::error::eof;
    return n;
  }
  template <class Buffers>
  size_t read_some(const Buffers& to) {
    boost::system::error_code failure;
    const size_t n = read_some(to, failure);
    if (failure) throw boost::system::system_error(failure);
    return n;
  }

 private:
  std::string_view rest_;
  const size_t piece_;
};

}  // namespace lowkey::test
