// Linked into the fuzz targets of wire messages: Protobuf's own log.
#include <google/protobuf/stubs/logging.h>

[[maybe_unused]] static const auto before = google::protobuf::SetLogHandler(nullptr);
