#include "transport/metrics_reporter.h"

#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {

using monitoring::Metric;

std::string MetricsReporter::serialize() {
  process_.update();
  if (plane_ != nullptr) update_transport(plane_->stats());
  return metrics_.serialize();
}

Status MetricsReporter::answer(ControlConnection& peer, std::string_view request) {
  wire::MetricsRequest asked;
  if (!asked.ParseFromArray(request.data(), static_cast<int>(request.size()))) {
    return Error{Code::kInvalidArgument, "malformed MetricsRequest", {}};
  }
  wire::MetricsReply reply;
  reply.set_id(asked.id());
  reply.set_families(serialize());
  return peer.send(MessageType::kMetricsReply, reply.SerializeAsString());
}

void MetricsReporter::update_transport(const TransportStats& now) {
  const auto grow = [&](Metric metric, auto current, auto before, const monitoring::Labels& labels) {
    if (current != before) metrics_.add(metric, static_cast<double>(current - before), labels);
  };
  grow(Metric::kControlMessages, now.messages_sent, seen_.messages_sent, {{"direction", "sent"}});
  grow(Metric::kControlMessages, now.messages_received, seen_.messages_received, {{"direction", "received"}});
  grow(Metric::kControlBytes, now.message_bytes_sent, seen_.message_bytes_sent, {{"direction", "sent"}});
  grow(Metric::kControlBytes, now.message_bytes_received, seen_.message_bytes_received, {{"direction", "received"}});
  grow(Metric::kPeersDown, now.handshakes_refused, seen_.handshakes_refused, {{"reason", "refused"}});
  grow(Metric::kPeersDown, now.peers_silent, seen_.peers_silent, {{"reason", "silent"}});
  grow(Metric::kPeersDown, now.connections_lost - now.peers_silent, seen_.connections_lost - seen_.peers_silent,
       {{"reason", "killed"}});
  for (const auto& [transport, transfers] : now.transfers) {
    const TransferStats& before = seen_.transfers[transport];
    const auto put = monitoring::Labels{{"direction", "put"}, {"transport", transport}};
    const auto get = monitoring::Labels{{"direction", "get"}, {"transport", transport}};
    grow(Metric::kTransferBytes, transfers.put_bytes, before.put_bytes, put);
    grow(Metric::kTransferBytes, transfers.get_bytes, before.get_bytes, get);
    grow(Metric::kTransferSeconds, transfers.put_seconds, before.put_seconds, put);
    grow(Metric::kTransferSeconds, transfers.get_seconds, before.get_seconds, get);
    grow(Metric::kTransferFailures, transfers.failed_puts, before.failed_puts, {{"direction", "put"}});
    grow(Metric::kTransferFailures, transfers.failed_gets, before.failed_gets, {{"direction", "get"}});
  }
  metrics_.set(Metric::kQuarantinedBytes, static_cast<double>(now.quarantined_bytes_now));
  update_paths(now);
  seen_ = now;
}

void MetricsReporter::update_paths(const TransportStats& now) {
  const auto each = [](const Attestation& path, auto&& set) {
    const monitoring::Labels peer{{"peer_role", to_string(path.peer_role)},
                                  {"peer_rank", std::to_string(path.peer_rank)}};
    const auto with = [&](monitoring::Labels more) {
      more.insert(peer.begin(), peer.end());
      return more;
    };
    set(Metric::kTransportInfo, 1,
        with({{"transport", to_string(path.found)},
              {"device", path.device},
              {"expected", to_string(path.expected)}}));
    set(Metric::kTransportMismatch, path.as_expected() ? 0 : 1, peer);
    const auto measured = [&](const char* memory, double put, double get) {
      set(Metric::kTransportBandwidth, put, with({{"direction", "put"}, {"memory", memory}}));
      set(Metric::kTransportBandwidth, get, with({{"direction", "get"}, {"memory", memory}}));
    };
    measured("host", path.put_bytes_per_second, path.get_bytes_per_second);
    if (path.gpu != GpuMemory::kNone)
      measured("device", path.gpu_put_bytes_per_second, path.gpu_get_bytes_per_second);
  };
  // A peer may have gone, or come back another way.
  for (const Attestation& path : seen_.paths_now)
    each(path, [&](Metric metric, double, const auto& labels) { metrics_.remove(metric, labels); });
  for (const Attestation& path : now.paths_now)
    each(path, [&](Metric metric, double value, const auto& labels) { metrics_.set(metric, value, labels); });
}

}  // namespace lowkey::transport
