// A phase of the start that may take minutes on one rank and nothing on another: loading weights, touching a
// pool, waiting for a coordinator. While it lasts the ranks go on telling each other that they are there, and
// how far they are. So whoever dies or stalls is known by its number after a few seconds, however long the
// others still work, and nobody works on when somebody has failed.
#pragma once

#include <functional>

#include "base/deadline.h"
#include "base/result.h"
#include "transport/host_comm.h"

namespace lowkey::cli {

struct RollCall {
  const char* phase = "";  // "loading the model": as in "while loading the model: rank 2 has been silent"
  Duration patience = std::chrono::seconds(10);      // silence for longer is a loss
  Duration longest_pause = std::chrono::seconds(1);  // from one call to the next
  // Another rank is lost or has failed while this one still works, and its work cannot be called off: the
  // process should end. On a helper thread, at most once. The message is empty where that rank tells its own.
  std::function<void(const Error&)> on_cut_off;
};

struct Roll {
  // The error of this rank's own work; or that of another rank, whose message it tells itself; or
  // kUnavailable, naming who went silent.
  Status status;
  // False: a rank is silent, or was called off in its work. Nothing collective will complete any more.
  bool all_there = true;
};

// Collective. Runs `work` on this thread; until every rank's is done, or one has failed, a helper thread is
// the only one that uses `world`.
Roll call_roll(transport::HostComm& world, const RollCall& options, const std::function<Status()>& work);

}  // namespace lowkey::cli
