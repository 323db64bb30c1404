// MPI jobs of four ranks under mpirun, and one without.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <set>

#include "tests/integration/transport/process.h"

namespace lowkey {
namespace {

using namespace std::chrono_literals;

// `timeout` ends a job that hangs, its ranks included: it is hangs that these tests look for.
std::vector<std::string> mpirun(const std::string& mode) {
  std::vector<std::string> command{"timeout", "60", MPIRUN, "--oversubscribe", "--bind-to", "none"};
  if (geteuid() == 0) command.push_back("--allow-run-as-root");
  command.insert(command.end(), {"--enable-recovery", "-n", "4", MPI_RANKS, mode});
  return command;
}

struct Job {
  std::string output;
  bool ended = false;
};

Job run(const std::string& mode) {
  Process process(mpirun(mode));
  Job job;
  job.output = process.rest(Deadline::in(70s));
  job.ended = process.finish(Deadline::in(30s)).has_value();
  return job;
}

bool says(const Job& job, int rank, const std::string& what) {
  return job.output.find("rank " + std::to_string(rank) + ": " + what + "\n") != std::string::npos;
}

TEST(MpiJob, Collectives) {
  const Job job = run("collectives");
  for (int rank = 0; rank < 4; ++rank) EXPECT_TRUE(says(job, rank, "ok")) << job.output;
  EXPECT_TRUE(job.ended);
}

TEST(MpiJob, SurvivorsOfAKilledRankGiveUpAtTheDeadline) {
  const Job job = run("kill");
  for (int rank : {0, 2, 3}) EXPECT_TRUE(says(job, rank, "ok")) << job.output;
  EXPECT_FALSE(says(job, 1, "ok"));
  EXPECT_TRUE(job.ended);
}

// In `mode` one rank stops; the others say "ok" when they have done what they should about it.
void survive_a_stopped_rank(const std::string& mode, const std::set<std::string>& expected) {
  Process process(mpirun(mode));
  pid_t stopped = 0;
  std::set<std::string> said;
  while (said.size() < 3) {
    const auto line = process.line(Deadline::in(60s));
    ASSERT_TRUE(line);
    const size_t pid = line->find("pid ");
    if (pid == std::string::npos) {
      said.insert(*line);
    } else {
      stopped = std::stoi(line->substr(pid + 4));
    }
  }
  EXPECT_EQ(said, expected);
  ASSERT_GT(stopped, 0);
  kill(stopped, SIGKILL);  // mpirun would wait for it for good
  EXPECT_TRUE(process.finish(Deadline::in(30s)));
}

TEST(MpiJob, SurvivorsOfAStoppedRankGiveUpAtTheDeadline) {
  survive_a_stopped_rank("stop", {"rank 0: ok", "rank 2: ok", "rank 3: ok"});
}

TEST(MpiJob, AnExchangeNamesTheRankThatIsSilent) {
  survive_a_stopped_rank("silent", {"rank 0: ok", "rank 1: ok", "rank 3: ok"});
}

TEST(MpiJob, WorksWithoutMpirun) {
  Process alone({MPI_RANKS, "alone"});
  EXPECT_EQ(alone.line(Deadline::in(30s)), "rank 0: ok");
  EXPECT_EQ(alone.finish(Deadline::in(30s)), 0);
}

}  // namespace
}  // namespace lowkey
