// Reads generation requests: parses, compiles schemas, renders the chat template, tokenizes. Short ones at
// once, long ones and those with schemas on the pool. I/O thread only.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"
#include "coordinator/api/generation_request.h"

namespace boost::asio {
class io_context;
}

namespace lowkey::coordinator {

class WorkPool;
struct ServedModel;

class RequestReader {
 public:
  // All of these outlive it.
  RequestReader(boost::asio::io_context& io, const ServedModel& model, WorkPool& pool)
      : io_(io), model_(model), pool_(pool) {}

  using Done = std::function<void(Result<GenerationRequest>)>;
  // Calls `done` with the request and its token ids (without them where it names another model), now or
  // later. False: too many long ones are being read; `done` is not called.
  bool read(Endpoint endpoint, std::string body, Done done) const;

 private:
  boost::asio::io_context& io_;
  const ServedModel& model_;
  WorkPool& pool_;
};

}  // namespace lowkey::coordinator
