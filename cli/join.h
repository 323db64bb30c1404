// How a job of workers, or of a store, gets its place in a cluster that runs already.
#pragma once

#include "base/result.h"
#include "cli/job.h"
#include "transport/peer.h"

namespace lowkey::cli {

// Collective over the ranks of a job that was started with --join: its leader asks the coordinator, and every
// rank's job takes the replica id and the world ranks of the answer. `self`: the fingerprints of workers.
// Errors, with the reason, on the leader; the others get an empty one: kUsage (secret, recipe, ranks),
// kBadInput (another model), kUnavailable (nobody there within --reconnect-seconds).
Status join_cluster(Job& job, const transport::PeerInfo& self);

}  // namespace lowkey::cli
