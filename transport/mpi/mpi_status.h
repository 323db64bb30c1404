// The one mapping of MPI's error codes to ours.
#pragma once

#include <mpi.h>

#include <string>

#include "base/result.h"

namespace lowkey::transport {

// Ok for MPI_SUCCESS, else "<what>: <MPI's words>".
Status mpi_status(int code, const std::string& what);

}  // namespace lowkey::transport
