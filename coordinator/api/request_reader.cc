#include "coordinator/api/request_reader.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <memory>

#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"

namespace lowkey::coordinator {
namespace {

// Bodies up to this size are read and tokenized on the I/O thread (well under a millisecond), longer ones on
// the pool; and those that may hold a schema, which can be much work at any size. Keys with escapes are not
// read for that.
constexpr size_t kInlineBytes = 16 << 10;

bool is_quick(std::string_view body) {
  return body.size() <= kInlineBytes && body.find("schema") == std::string_view::npos &&
         body.find("\\u") == std::string_view::npos;
}

Result<GenerationRequest> prepare(const ServedModel& model, Endpoint endpoint, const std::string& body) {
  LOWKEY_ASSIGN(request, parse_generation(endpoint, body, model.defaults));
  if (request.model.empty() || request.model == model.id) LOWKEY_TRY(encode_prompts(model, request));
  return request;
}

}  // namespace

bool RequestReader::read(Endpoint endpoint, std::string body, Done done) const {
  if (is_quick(body)) {
    done(prepare(model_, endpoint, body));
    return true;
  }
  return pool_.try_run(
      [&io = io_, &model = model_, endpoint, done = std::move(done), text = std::move(body)] {
        auto result =
            std::make_shared<Result<GenerationRequest>>(Error{Code::kInternal, "The request was not read."});
        try {
          *result = prepare(model, endpoint, text);
        } catch (const std::exception& e) {
          spdlog::error("reading a request of {} bytes: {}", text.size(), e.what());
        }
        boost::asio::post(io, [done, result] { done(std::move(*result)); });
      });
}

}  // namespace lowkey::coordinator
