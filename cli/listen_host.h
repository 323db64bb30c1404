// Which of this host's addresses a process listens at for its peers.
#pragma once

#include <string>
#include <vector>

#include "base/serve_config.h"

namespace lowkey::cli {

// `hosts`: of every rank of the job (transport::host_identity()). What the settings say; else loopback where
// everybody it is to meet is on this host, and otherwise an address that other hosts reach.
std::string listen_host_of(const ServeConfig& config, const std::vector<std::string>& hosts);

}  // namespace lowkey::cli
