// Bodies of HTTP requests: an error that names what is wrong, or a request within its documented ranges. The
// first byte chooses the endpoint.
#include <cmath>
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
  LOWKEY_CHECK(!request->max_tokens || *request->max_tokens >= (request->echo ? 0 : 1));
  LOWKEY_CHECK(request->min_p >= 0 && request->min_p <= 1, "{}", request->min_p);
  LOWKEY_CHECK(std::abs(request->presence_penalty) <= 2 && std::abs(request->frequency_penalty) <= 2);
  LOWKEY_CHECK(request->repetition_penalty > 0, "{}", request->repetition_penalty);
  for (const auto& [token, bias] : request->logit_bias) LOWKEY_CHECK(token >= 0 && std::abs(bias) <= 100);
  LOWKEY_CHECK(request->n >= 1 && request->n * request->inputs.size() <= GenerationRequest::kMaxChoices);
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
