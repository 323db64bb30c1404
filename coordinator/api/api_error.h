// Errors as the OpenAI API shapes them: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <string>

#include "base/result.h"
#include "coordinator/http/message.h"

namespace lowkey::coordinator {

struct ApiError {
  int status = 500;
  std::string message;
  std::string type = "server_error";
  std::string param;            // empty: null
  std::string code;             // empty: null
  int retry_after_seconds = 0;  // 0: no Retry-After
};

// A plain 4xx or 5xx: type and code follow the status.
ApiError api_error(int status, std::string message);
// kInvalidArgument: 400 with its param, kResourceExhausted: 429, kUnavailable: 503, ...; see Code.
ApiError api_error(const Error& error);
ApiError model_not_found(const std::string& model, const std::string& served);
ApiError context_length_exceeded(uint64_t limit, uint64_t prompt_tokens, uint64_t max_tokens,
                                 const char* param);

std::string error_body(const ApiError& error);
HttpResponse error_http(const ApiError& error);

}  // namespace lowkey::coordinator
