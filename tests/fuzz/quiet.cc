// Linked into every fuzz target: what is refused is not logged, a million times over.
#include "base/log.h"

static const bool quiet = [] {
  spdlog::set_level(spdlog::level::off);
  return true;
}();
