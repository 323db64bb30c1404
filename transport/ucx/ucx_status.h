// The one mapping of UCX's status codes to ours, and UCX's own log lines into our log.
#pragma once

#include <ucs/type/status.h>

#include <string>

#include "base/result.h"

namespace lowkey::transport {

// "<what>: <UCX's words>". REQUIRES: a failure, neither UCS_OK nor UCS_INPROGRESS.
Error ucx_error(ucs_status_t status, const std::string& what);

// Once per process; later calls do nothing.
void route_ucx_log();

}  // namespace lowkey::transport
