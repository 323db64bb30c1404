// A rank's model and cache, as loaded before anybody connects.
#pragma once

#include <memory>

#include "cli/job.h"
#include "kvstore/page/page_memory.h"
#include "kvstore/recipe/resolve.h"
#include "transport/peer.h"
#include "worker/device/device.h"
#include "worker/model/model.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::cli {

struct Replica {
  worker::ModelConfig config;
  Hash128 model_fingerprint;  // of the weights as they are held
  kvstore::ResolvedCache cache;
  worker::Device device;
  std::unique_ptr<worker::Model> model;
  std::unique_ptr<kvstore::PageMemory> memory;
};

// Of this process's rank. Errors: of the model, recipe and profile, and of settings that do not fit them or
// the device.
Result<Replica> load_replica(const Job& job);

// Tells metrics and the log what was loaded.
void report_replica(const Job& job, const Replica& replica, monitoring::Metrics& metrics);

// What the replica's ranks say of themselves when they connect.
transport::PeerInfo fingerprints(const Replica& replica);

}  // namespace lowkey::cli
