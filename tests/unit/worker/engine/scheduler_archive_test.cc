// The scheduler where a recipe has an archive, and how many tokens a budget holds under it.
#include <random>

#include "base/bytes.h"
#include "tests/unit/worker/engine/scheduler_loop.h"

namespace lowkey::worker {
namespace {

using kernels::PageLayout;
using kernels::PageSpec;
using kvstore::ArchiveSpec;
using kvstore::BudgetShape;
using kvstore::PageMemoryOptions;
using kvstore::TokenDial;

constexpr kernels::CacheShape kShape{4, 2, 64, kernels::DType::kBf16};

PageLayout layout_of(const PageSpec& spec, kernels::CacheShape shape = kShape) {
  return std::move(PageLayout::make(spec, shape)).value();
}

ArchiveSpec minikv(BudgetShape shape, int block = 128) {
  PageSpec spec{.recipe = "minikv"};
  spec.key.quantizer = spec.value.quantizer = kernels::Quantizer::kAffine;
  spec.key.bits = spec.value.bits = {{2}, {2}, {2}, {2}};
  spec.key.axis = kernels::ScaleAxis::kChannel;
  spec.value.axis = kernels::ScaleAxis::kToken;
  spec.key.scale_span = spec.value.scale_span = 16;
  kernels::CacheShape one_bank = kShape;
  one_bank.num_banks = 1;
  return {.layouts = std::vector<PageLayout>(kShape.num_banks, layout_of(spec, one_bank)),
          .tokens = TokenDial{.shape = shape},
          .block_tokens = block};
}

TEST(SchedulerArchive, RandomLoadEndsWithEverythingReturned) {
  const PageLayout exact = layout_of({});
  uint64_t preemptions = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const SchedulerOptions options{.step_tokens = 1 + static_cast<int>(random() % 300),
                                   .max_batch = 1 + static_cast<int>(random() % 12)};
    const auto shape = random() % 2 ? BudgetShape::kUniform : BudgetShape::kPyramid;
    const uint64_t budget = (8 + random() % 20) * exact.slab_bytes[0];
    Loop loop(options, exact, {budget, minikv(shape, 32 << random() % 3), 2000});
    const int most = static_cast<int>(loop.pool().memory().max_sequence_tokens());
    std::set<uint64_t> open;
    size_t total = 0;
    for (int i = 0; i < 200000 && (total < 40 || !open.empty()); ++i) {
      if (total < 40 && random() % 4 == 0) {
        const int prompt = 1 + random() % (most - 1);
        open.insert(loop.add(prompt, 1 + random() % (most - prompt)));
        ++total;
      }
      if (!open.empty() && random() % 100 == 0) {
        Sequence* victim = loop.find(*open.begin());
        if (victim != nullptr) loop.scheduler().remove(*victim);
      }
      loop.step();
      std::erase_if(open, [&](uint64_t id) { return loop.ended(id); });
    }
    EXPECT_TRUE(open.empty()) << "seed " << seed;
    EXPECT_EQ(loop.pool().ledger().used, 0u);
    preemptions += loop.scheduler().preemptions();
  }
  EXPECT_GT(preemptions, 0u);
}

TEST(SchedulerArchive, AdmissionForecastsThePromptExactBesideItsArchive) {
  const PageLayout exact = layout_of({});
  const auto memory =
      std::move(kvstore::PageMemory::make(exact, {kMiB, minikv(BudgetShape::kUniform), 2048})).value();
  const uint64_t peak = memory->peak_bytes(1024, 20), left = memory->resident_bytes(1024, 20);
  EXPECT_LT(4 * left, peak);
  // Room for one prompt under way and what is left of another.
  const uint64_t budget = (peak + left) * 5 / 4;
  Loop loop({.step_tokens = 64, .max_batch = 8}, exact, {budget, minikv(BudgetShape::kUniform), 2048});
  const uint64_t first = loop.add(1024, 20), second = loop.add(1024, 20);
  loop.step();
  EXPECT_EQ(loop.scheduler().running(), 1u);
  for (int i = 0; i < 1000 && !loop.find(first)->prompt_archived; ++i) loop.step();
  loop.step();
  EXPECT_EQ(loop.scheduler().running(), 2u) << "the first one's prompt has become small";
  for (int i = 0; i < 1000 && !loop.ended(second); ++i) loop.step();
  EXPECT_TRUE(loop.ended(second));
  EXPECT_EQ(loop.scheduler().preemptions(), 0u);
}

// Sequences of 8192 tokens that run together, each with all its tokens in the cache.
uint64_t concurrent(const PageLayout& layout, PageMemoryOptions memory) {
  constexpr int kPrompt = 8192, kMaxTokens = 100000;
  memory.max_tokens = kPrompt + kMaxTokens;
  Loop loop({.step_tokens = 8192, .max_batch = 100000}, layout, std::move(memory));
  for (int i = 0; i < 200; ++i) loop.add(kPrompt, kMaxTokens);
  size_t before = 0;
  for (int step = 0; step < 1200; ++step) {
    loop.step();
    const size_t running = loop.scheduler().running();
    if (step % 10 == 9 && std::exchange(before, running) == running) break;
  }
  EXPECT_GT(loop.scheduler().waiting(), 0u) << "the memory, not the load, is the limit";
  const kvstore::Ledger ledger = loop.pool().ledger();
  // Room for one prompt under way, exact, and a block for everybody stay free where there is an archive.
  EXPECT_GT(ledger.used, ledger.capacity * 8 / 10) << "admission leaves little";
  return loop.scheduler().running();
}

// The promise: what saves six times the bytes at 8k holds 5.5 times the tokens.
TEST(SchedulerArchive, SixTimesSmallerHoldsFiveAndAHalfTimesTheTokens) {
  const PageLayout exact = layout_of({});
  const uint64_t budget = 24 * exact.bytes_for_tokens(8300);
  const uint64_t plain = concurrent(exact, {budget});
  EXPECT_GE(plain, 22u);
  const PageLayout small = layout_of(PageSpec::embedded("two bits", 2, 4));
  ASSERT_GE(exact.bytes_for_tokens(8192), 6 * small.bytes_for_tokens(8192));
  EXPECT_GE(concurrent(small, {budget}), 5.5 * plain);
  for (const BudgetShape shape : {BudgetShape::kUniform, BudgetShape::kPyramid}) {
    const auto memory = std::move(kvstore::PageMemory::make(exact, {kMiB, minikv(shape)})).value();
    ASSERT_GE(memory->compression_ratio(), 6);
    EXPECT_GE(concurrent(exact, {budget, minikv(shape)}), 5.5 * plain);
  }
}

}  // namespace
}  // namespace lowkey::worker
