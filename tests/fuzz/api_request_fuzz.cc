// Bodies of HTTP requests: an error that names what is wrong, or a request within its documented ranges. The
// first byte chooses the endpoint.
#include <cstdint>

#include "base/check.h"
#include "coordinator/api/generation_request.h"

namespace lowkey::coordinator {

static void generation(Endpoint endpoint, std::string_view body) {
  const auto request = parse_generation(endpoint, body, {});
  if (!request) {
    LOWKEY_CHECK(request.error().code == Code::kInvalidArgument && !request.error().message.empty());
    return;
  }
  LOWKEY_CHECK(request->temperature >= 0 && request->temperature <= 2, "{}", request->temperature);
  LOWKEY_CHECK(request->top_p > 0 && request->top_p <= 1, "{}", request->top_p);
  LOWKEY_CHECK(request->top_k >= 0 && request->top_logprobs <= 20);
  LOWKEY_CHECK(!request->max_tokens || *request->max_tokens >= 1);
}

}  // namespace lowkey::coordinator

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey::coordinator;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      generation(Endpoint::kCompletions, body);
      break;
    case 1:
      generation(Endpoint::kChat, body);
      break;
    case 2:
      (void)parse_tokenize(body).ok();
      break;
    default:
      (void)parse_detokenize(body).ok();
      break;
  }
  return 0;
}
