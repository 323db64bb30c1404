#include "transport/ucx/ucx_status.h"

#include <ucs/debug/log_def.h>

#include <cstdio>
#include <mutex>

#include "base/log.h"

namespace lowkey::transport {
namespace {

Code code_of(ucs_status_t status) {
  switch (status) {
    case UCS_ERR_NO_RESOURCE:
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_EXCEEDS_LIMIT:
    case UCS_ERR_SHMEM_SEGMENT:
      return Code::kResourceExhausted;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
    case UCS_ERR_BUFFER_TOO_SMALL:
    case UCS_ERR_OUT_OF_RANGE:
    case UCS_ERR_MESSAGE_TRUNCATED:
      return Code::kInvalidArgument;
    case UCS_ERR_TIMED_OUT:
      return Code::kDeadlineExceeded;
    case UCS_ERR_CANCELED:
      return Code::kCancelled;
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_REJECTED:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_IO_ERROR:
    case UCS_ERR_NO_DEVICE:
    case UCS_ERR_BUSY:
      return Code::kUnavailable;
    default:
      return UCS_IS_LINK_ERROR(status) || UCS_IS_ENDPOINT_ERROR(status) ? Code::kUnavailable
                                                                        : Code::kInternal;
  }
}

// A peer's death is an ERROR for UCX and an event for us, so its levels are lowered by one.
ucs_log_func_rc_t on_log(const char*, unsigned, const char*, ucs_log_level_t level,
                         const ucs_log_component_config_t*, const char* message, va_list arguments) {
  if (level == UCS_LOG_LEVEL_FATAL) return UCS_LOG_FUNC_RC_CONTINUE;  // UCX prints it and aborts
  char line[512];
  std::vsnprintf(line, sizeof line, message, arguments);
  if (level == UCS_LOG_LEVEL_ERROR) {
    spdlog::warn("UCX: {}", line);
  } else if (level == UCS_LOG_LEVEL_WARN) {
    spdlog::info("UCX: {}", line);
  } else {
    spdlog::debug("UCX: {}", line);
  }
  return UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

Error ucx_error(ucs_status_t status, const std::string& what) {
  LOWKEY_CHECK(status != UCS_OK && status != UCS_INPROGRESS, "{} is no failure", static_cast<int>(status));
  return {code_of(status), fmt::format("{}: {}", what, ucs_status_string(status))};
}

void route_ucx_log() {
  static std::once_flag once;
  std::call_once(once, [] { ucs_log_push_handler(on_log); });
}

}  // namespace lowkey::transport
