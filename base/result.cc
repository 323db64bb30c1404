#include "base/result.h"

namespace lowkey {

const char* to_string(Code code) {
  switch (code) {
    case Code::kUsage:
      return "usage";
    case Code::kBadInput:
      return "bad input";
    case Code::kInvalidArgument:
      return "invalid argument";
    case Code::kUnauthenticated:
      return "unauthenticated";
    case Code::kNotFound:
      return "not found";
    case Code::kTooLarge:
      return "too large";
    case Code::kResourceExhausted:
      return "resource exhausted";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kDeadlineExceeded:
      return "deadline exceeded";
    case Code::kCancelled:
      return "cancelled";
    case Code::kDataLoss:
      return "data loss";
    case Code::kInternal:
      return "internal";
  }
  LOWKEY_CHECK(false, "code {}", static_cast<int>(code));
}

}  // namespace lowkey
