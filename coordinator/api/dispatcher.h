// Sends generations to the replicas that routing chooses, and takes them back. I/O thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/api/reply.h"
#include "coordinator/membership/replica.h"

namespace lowkey::coordinator {

class Explainer;
class Membership;
class Router;
struct Generation;
struct ServedModel;

uint64_t random_bits();

class Dispatcher {
 public:
  // All of them outlive it. `elsewhere`: for its replies.
  Dispatcher(const ServedModel& model, Membership& membership, Router& router, Explainer& explainer,
             Reply::Elsewhere elsewhere)
      : model_(model),
        membership_(membership),
        router_(router),
        explainer_(explainer),
        elsewhere_(std::move(elsewhere)) {}

  // To another replica than `excluded`; the first time, its answer and its story are opened. `cause`: why it
  // has to move; empty: it is new. False: nobody can take it.
  bool place(Generation& generation, int excluded, const std::string& cause);
  // Its first token has come.
  void note_started(const Generation& generation);
  // Tells its replica, if that is there, that nobody wants the answer any more.
  void cancel(const Generation& generation) const;
  // No replica answers it any more.
  void release(Generation& generation);

 private:
  std::shared_ptr<Reply> new_reply(const Generation& generation, const Replica& replica) const;
  void open_answer(Generation& generation, const Replica& replica);

  const ServedModel& model_;
  Membership& membership_;
  Router& router_;
  Explainer& explainer_;
  const Reply::Elsewhere elsewhere_;
  const uint64_t id_prefix_ = random_bits();
};

}  // namespace lowkey::coordinator
