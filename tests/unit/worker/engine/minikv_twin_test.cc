// recipes/minikv.yaml and minikv-pyramid.yaml as they are served, against a float64 twin of the paper's
// formulas (tests/golden/engine/minikv_twin.py).
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_backend.h"
#include "kvstore/recipe/resolve.h"
#include "tests/unit/worker/engine/engine_replica.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::worker {
namespace {

const std::filesystem::path kSource(LOWKEY_SOURCE_DIR);

kvstore::ResolvedCache resolved(const std::string& recipe, const ModelConfig& config) {
  const kvstore::ModelShape shape{.name = config.name,
                                  .num_layers = config.num_layers,
                                  .num_kv_heads = config.num_kv_heads,
                                  .head_dim = config.head_dim,
                                  .dtype = kernels::DType::kF32};
  const auto read = kvstore::read_recipe(kSource / "recipes" / (recipe + ".yaml"));
  LOWKEY_CHECK(read.ok(), "{}", read.error().message);
  return std::move(kvstore::resolve(*read, nullptr, shape, 0, 1)).value();
}

EngineReplicaOptions options(const std::string& recipe) {
  const ModelConfig config = std::move(ModelConfig::read(testing::demo_model())).value();
  const kvstore::ResolvedCache cache = resolved(recipe, config);
  EngineReplicaOptions options;
  options.kv_bytes = 64 << 20;
  options.spec = {.page_tokens = cache.pages.page_tokens};
  options.archive = [cache](const kernels::CacheShape&) { return *cache.archive_spec(); };
  auto backend = std::make_shared<std::unique_ptr<kernels::Backend>>();
  options.model = [config, backend](int, int) {
    *backend = kernels::make_cpu_backend({.dtype = kernels::DType::kF32, .threads = 1});
    return std::move(Model::load(testing::demo_model(), config, 0, 1, **backend)).value();
  };
  options.backend = [backend](int) { return backend->get(); };
  return options;
}

class MiniKvTwin : public ::testing::TestWithParam<const char*> {};

TEST_P(MiniKvTwin, AnswersAreThoseOfTheFormulas) {
  const auto golden = testing::read_json(kSource / "tests" / "golden" / "engine" / "minikv_demo.json");
  EngineReplica replica(options(GetParam()));
  int answers = 0;
  for (const auto& item : golden.at("cases").as_array()) {
    if (item.at("recipe").as_string() != GetParam()) continue;
    const std::vector<int32_t> expected = testing::ids(item.at("tokens"));
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_ignore_eos(true);
    const uint64_t id =
        replica.submit(testing::ids(item.at("prompt")), static_cast<int>(expected.size()), sampling);
    replica.run();
    EXPECT_EQ(replica.answer(id).tokens, expected) << "answer " << answers;
    ++answers;
  }
  EXPECT_GE(answers, 4);
}

INSTANTIATE_TEST_SUITE_P(Recipes, MiniKvTwin, ::testing::Values("minikv", "minikv-pyramid"),
                         [](const auto& recipe) {
                           return std::string(recipe.param) == "minikv" ? "uniform" : "pyramid";
                         });

}  // namespace
}  // namespace lowkey::worker
