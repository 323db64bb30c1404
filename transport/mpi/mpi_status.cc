#include "transport/mpi/mpi_status.h"

namespace lowkey::transport {

Status mpi_status(int code, const std::string& what) {
  if (code == MPI_SUCCESS) return {};
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0, error_class = MPI_ERR_UNKNOWN;
  MPI_Error_string(code, text, &length);
  MPI_Error_class(code, &error_class);
  Code ours = Code::kInternal;
  if (error_class == MPI_ERR_NO_MEM) ours = Code::kResourceExhausted;
  if (error_class == MPI_ERR_OTHER || error_class == MPI_ERR_INTERN)
    ours = Code::kUnavailable;  // a lost peer
  return Error{ours, what + ": " + text};
}

}  // namespace lowkey::transport
