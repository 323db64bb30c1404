#include "coordinator/api/api_error.h"

#include <boost/json.hpp>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {

namespace json = boost::json;

ApiError api_error(int status, std::string message) {
  ApiError error{.status = status, .message = std::move(message)};
  if (status < 500) error.type = "invalid_request_error";
  switch (status) {
    case 401:
      error.code = "invalid_api_key";
      break;
    case 404:
      error.code = "not_found";
      break;
    case 405:
      error.code = "method_not_allowed";
      break;
    case 413:
      error.code = "request_too_large";
      break;
    case 429:
      error.type = "rate_limit_error";
      error.code = "rate_limit_exceeded";
      error.retry_after_seconds = 1;
      break;
    case 503:
      error.code = "unavailable";
      error.retry_after_seconds = 1;
      break;
    default:
      break;
  }
  return error;
}

ApiError api_error(const Error& error) {
  auto status = [&] {
    switch (error.code) {
      case Code::kUsage:
      case Code::kBadInput:
      case Code::kInvalidArgument:
        return 400;
      case Code::kUnauthenticated:
        return 401;
      case Code::kNotFound:
        return 404;
      case Code::kTooLarge:
        return 413;
      case Code::kResourceExhausted:
        return 429;
      case Code::kUnavailable:
      case Code::kCancelled:
        return 503;
      case Code::kDeadlineExceeded:
        return 504;
      case Code::kDataLoss:
      case Code::kInternal:
        return 500;
    }
    return 500;
  }();
  ApiError result = api_error(status, error.message);
  result.param = error.param;
  return result;
}

ApiError model_not_found(const std::string& model, const std::string& served) {
  ApiError error =
      api_error(404, fmt::format("The model `{}` does not exist; this server has `{}`.", model, served));
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

ApiError context_length_exceeded(uint64_t limit, uint64_t prompt_tokens, uint64_t max_tokens,
                                 const char* param) {
  ApiError error =
      api_error(400, fmt::format("This model's maximum context length is {} tokens. However, you "
                                 "requested {} tokens ({} in the {}, {} for the completion).",
                                 limit, prompt_tokens + max_tokens, prompt_tokens, param, max_tokens));
  error.param = param;
  error.code = "context_length_exceeded";
  return error;
}

std::string error_body(const ApiError& error) {
  auto or_null = [](const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  const json::object body = {{"error",
                              {{"message", replace_invalid_utf8(error.message)},  // may quote what was sent
                               {"type", error.type},
                               {"param", or_null(error.param)},
                               {"code", or_null(error.code)}}}};
  return json::serialize(body);
}

HttpResponse error_http(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = error_body(error)};
  if (error.retry_after_seconds > 0)
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_seconds));
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace lowkey::coordinator
