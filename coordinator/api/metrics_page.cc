#include "coordinator/api/metrics_page.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>

#include "coordinator/membership/membership.h"
#include "monitoring/metrics.h"
#include "transport/metrics_reporter.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

using transport::ConnectionPtr;

struct MetricsPage::Impl : std::enable_shared_from_this<Impl> {
  Impl(boost::asio::io_context& io, Membership& members, transport::MetricsReporter& reporter)
      : membership(members), own(reporter), timer(io) {}

  void serve(ExchangePtr exchange) {
    waiting.push_back(std::move(exchange));
    if (waiting.size() > 1) return;
    membership.forget_lost();
    wire::MetricsRequest request;
    request.set_id(++round);
    const std::string body = request.SerializeAsString();
    for (const auto& peer : membership.peers())
      if (peer->send(transport::MessageType::kMetricsRequest, body).ok()) asked[peer->id()] = peer;
    if (asked.empty()) return finish();
    timer.expires_after(kDeadline);
    timer.async_wait([weak = weak_from_this(), asked_in = round](const boost::system::error_code& cancelled) {
      auto self = weak.lock();
      // Cancelling comes too late for a timer that has run out: the next round is not this one's to end.
      if (self && !cancelled && self->round == asked_in && !self->asked.empty()) self->finish();
    });
  }

  void on_reply(const ConnectionPtr& connection, const wire::MetricsReply& reply) {
    if (reply.id() != round || asked.erase(connection->id()) == 0) return;  // too late
    membership.note_answer(connection->peer(), true);
    replies.push_back(reply.families());
    if (asked.empty()) finish();
  }

  void finish() {
    timer.cancel();
    for (const auto& [id, peer] : asked) membership.note_answer(peer->peer(), false);
    asked.clear();
    HttpResponse response{.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = render()};
    replies.clear();
    for (const auto& exchange : std::exchange(waiting, {})) exchange->respond(response);
  }

  // A snapshot that cannot be merged (another version, a rank that poses as another) is left out, not the
  // page.
  std::string render() {
    std::vector<std::string> parts = {own.serialize()};
    parts.insert(parts.end(), replies.begin(), replies.end());
    if (auto page = monitoring::render_page(parts); page.ok()) return *std::move(page);
    parts.resize(1);
    for (const auto& reply : replies) {
      parts.push_back(reply);
      if (const auto page = monitoring::render_page(parts); !page.ok()) {
        spdlog::warn("metrics of a rank are left out: {}", page.error().message);
        parts.pop_back();
      }
    }
    auto page = monitoring::render_page(parts);
    return page.ok() ? *std::move(page) : std::string();
  }

  Membership& membership;
  transport::MetricsReporter& own;
  boost::asio::steady_timer timer;
  uint64_t round = 0;
  std::vector<ExchangePtr> waiting;         // bounded by the server's connections
  std::map<uint64_t, ConnectionPtr> asked;  // still owe an answer, by connection id
  std::vector<std::string> replies;
};

MetricsPage::MetricsPage(boost::asio::io_context& io, Membership& membership, transport::MetricsReporter& own)
    : impl_(std::make_shared<Impl>(io, membership, own)) {}

MetricsPage::~MetricsPage() = default;

void MetricsPage::serve(ExchangePtr exchange) {
  impl_->serve(std::move(exchange));
}

void MetricsPage::on_reply(const ConnectionPtr& connection, const wire::MetricsReply& reply) {
  impl_->on_reply(connection, reply);
}

void MetricsPage::on_down(const ConnectionPtr& connection) {
  if (impl_->asked.erase(connection->id()) > 0 && impl_->asked.empty()) impl_->finish();
}

}  // namespace lowkey::coordinator
