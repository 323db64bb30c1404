#include "cli/roll_call.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "base/check.h"

namespace lowkey::cli {
namespace {

constexpr auto kShortestPause = std::chrono::milliseconds(2);
// What calling may add to the time that a phase takes, as all wait for the next call once the last is done.
constexpr int kPausesPerPhase = 20;

// What a rank says of itself; a number is the code of its failure.
constexpr char kWorking[] = "working";
constexpr char kDone[] = "done";

class Caller {
 public:
  Caller(transport::HostComm& world, const RollCall& options)
      : world_(world), options_(options), thread_([this] { run(); }) {}

  Roll finish(const Status& mine) {
    {
      const std::lock_guard lock(mutex_);
      state_ = mine.ok() ? kDone : std::to_string(static_cast<int>(mine.error().code));
    }
    changed_.notify_all();
    thread_.join();
    if (!mine.ok()) roll_.status = mine;
    return roll_;
  }

 private:
  void run() {
    while (!call()) {
    }
    if (!roll_.status.ok() && is_working() && options_.on_cut_off) options_.on_cut_off(roll_.status.error());
  }

  // True when there is nothing more to wait for.
  bool call() {
    const auto said = world_.all_gather(wait(), Deadline::in(options_.patience));
    if (!said.ok()) {
      roll_.status =
          Error{Code::kUnavailable, fmt::format("while {}: {}", options_.phase, said.error().message), {}};
      roll_.all_there = false;
      return true;
    }
    const bool somebody_works = std::ranges::find(*said, kWorking) != said->end();
    const auto failed =
        std::ranges::find_if(*said, [](const auto& state) { return state != kWorking && state != kDone; });
    if (failed == said->end()) return !somebody_works;
    roll_.status = Error{static_cast<Code>(std::stoi(*failed)), {}, {}};
    roll_.all_there = !somebody_works;
    return true;
  }

  // Until the next call is due, or there is news.
  std::string wait() {
    const Duration pause = std::clamp<Duration>((Clock::now() - begun_) / kPausesPerPhase, kShortestPause,
                                                options_.longest_pause);
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, pause, [&] { return state_ != kWorking; });
    return state_;
  }

  bool is_working() {
    const std::lock_guard lock(mutex_);
    return state_ == kWorking;
  }

  transport::HostComm& world_;
  const RollCall& options_;
  const TimePoint begun_ = Clock::now();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string state_ = kWorking;
  Roll roll_;
  std::thread thread_;  // uses what is above
};

}  // namespace

Roll call_roll(transport::HostComm& world, const RollCall& options, const std::function<Status()>& work) {
  if (world.size() == 1) return {.status = work()};
  Caller caller(world, options);
  return caller.finish(work());
}

}  // namespace lowkey::cli
