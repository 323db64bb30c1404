// What a transport has done so far. Counters only grow; the fields named "now" are gauges.
// Thread rule: written and read on the I/O thread; stats() gives a copy to hand elsewhere.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "transport/attestation.h"

namespace lowkey::transport {

struct TransferStats {
  uint64_t put_bytes = 0;
  uint64_t get_bytes = 0;
  uint64_t put_batches = 0;
  uint64_t get_batches = 0;
  uint64_t failed_puts = 0;  // batches: errors and deadlines
  uint64_t failed_gets = 0;
  double put_seconds = 0;  // of successful batches, from submission to report
  double get_seconds = 0;
};

struct TransportStats {
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  uint64_t message_bytes_sent = 0;
  uint64_t message_bytes_received = 0;
  uint64_t sends_refused = 0;       // too large, too much in flight, or connection down
  uint64_t handshakes_refused = 0;  // by this side or by the other
  uint64_t connections_lost = 0;    // went down in any way but an orderly close
  uint64_t peers_silent = 0;        // of those, for want of heartbeats
  uint64_t heartbeats_missed = 0;
  double heartbeat_round_trip_seconds = 0;  // the latest
  uint32_t peers_up_now = 0;
  uint32_t handshakes_now = 0;
  uint64_t message_bytes_in_flight_now = 0;
  // Local memory of failed batches that the transport has not let go of; pools that were freed, and that
  // peers may still write to.
  uint64_t quarantined_bytes_now = 0;
  uint32_t endpoints_closing_now = 0;  // shared memory: those of dead peers with a transfer under way stay
  std::map<std::string, TransferStats> transfers;  // by RemotePool::transport()
  std::vector<Attestation> paths_now;  // of connections that are up, in order of their measurement
};

}  // namespace lowkey::transport
