#include "kvstore/service/page_verifier.h"

#include <pthread.h>

#include <cstring>

#include "base/hash128.h"

namespace lowkey::kvstore {

namespace {

bool verify_and_copy(const FetchedPage& page) {
  for (size_t i = 0; i < page.fetched.size(); ++i) {
    if (page.fetched[i].empty()) continue;
    if (slab_checksum(page.fetched[i]) != page.checksums[i]) return false;
    std::memcpy(page.target[i].data(), page.fetched[i].data(), page.fetched[i].size());
  }
  return true;
}

}  // namespace

PageVerifier::PageVerifier(size_t queue_capacity) : queue_(queue_capacity), thread_([this] { run(); }) {
  pthread_setname_np(thread_.native_handle(), "page verifier");
}

PageVerifier::~PageVerifier() {
  queue_.close();
  thread_.join();
}

void PageVerifier::run() {
  for (;;) {
    auto job = queue_.pop(Deadline::in(std::chrono::hours(1)));
    if (!job) {
      if (queue_.closed()) return;
      continue;
    }
    size_t good = 0;
    while (good < job->pages.size() && !*job->cancelled && verify_and_copy(job->pages[good])) ++good;
    job->done(good);
  }
}

}  // namespace lowkey::kvstore
