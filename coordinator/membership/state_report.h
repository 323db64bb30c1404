// A leader's report on its replica, taken over into what the coordinator knows of it.
#pragma once

namespace lowkey::wire {
class ReplicaState;
}

namespace lowkey::coordinator {

struct Replica;

// Everything but the replica's connections and our own requests. Fingerprints of a wrong size and rates that
// are not finite and positive count as not told.
void take_report(const wire::ReplicaState& state, Replica& replica);

}  // namespace lowkey::coordinator
