// What training computes against the formulas in numpy float64 (tests/golden/train/make_golden.py), and the
// codes in its loop against those of the pages.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "cli/train_model.h"
#include "kernels/page/embedded_quantizer.h"
#include "kvstore/calibrate/train/cayley.h"
#include "kvstore/calibrate/train/frozen_decoder.h"
#include "kvstore/calibrate/train/straight_through.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {
namespace {

using kvstore::CodedCache;
using kvstore::FrozenDecoder;
using torch::Tensor;

const boost::json::value& golden() {
  static const boost::json::value file = read_json(golden_dir().parent_path() / "train" / "cases.json");
  return file;
}

Tensor tensor_of(const boost::json::value& rows) {
  std::vector<Tensor> all;
  for (const auto& row : boost::json::value_to<std::vector<std::vector<float>>>(rows))
    all.push_back(torch::tensor(row));
  return torch::stack(all);
}

double largest(const Tensor& x) {
  return x.abs().max().item<double>();
}

// make_golden.py, parameters()
kvstore::VectorProfile initial_vector(int vector, int dim) {
  kvstore::VectorProfile result;
  std::vector<double> w(dim);
  double square = 0;
  for (int i = 0; i < dim; ++i) square += std::pow(w[i] = std::sin(0.9 * i + vector + 1), 2);
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j < dim; ++j)
      result.encode.push_back(static_cast<float>((i == j) - 2 * w[i] * w[j] / square));
    result.mean.push_back(static_cast<float>(0.1 * std::sin(vector + 0.5 * i)));
    result.scale.push_back(static_cast<float>(0.3 + 0.7 / (1 + i)));
  }
  result.decode = result.encode;
  return result;
}

Tensor initial_rotation(int64_t vectors, int dim) {
  Tensor x = torch::zeros({vectors, dim, dim});
  auto at = x.accessor<float, 3>();
  for (int64_t v = 0; v < vectors; ++v)
    for (int i = 0; i < dim; ++i)
      for (int j = 0; j < dim; ++j)
        at[v][i][j] = static_cast<float>(0.4 * std::sin(0.7 * static_cast<double>(v) + 1.3 * i + 2.1 * j));
  return x;
}

TEST(Cayley, IsTheMapAndARotation) {
  Tensor x = torch::zeros({6, 6});
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) x[i][j] = 0.4 * std::sin(1.3 * i + 2.1 * j);
  EXPECT_LT(largest(kvstore::cayley(x) - tensor_of(golden().at("cayley"))), 1e-6);

  torch::manual_seed(1);
  for (const double size : {0.0, 0.1, 1.0, 5.0}) {
    const Tensor u = kvstore::cayley(torch::randn({5, 64, 64}) * size);
    EXPECT_LT(largest(u.matmul(u.transpose(-1, -2)) - torch::eye(64)), 1e-5) << size;
    EXPECT_LT(largest(u.logdet()), 1e-3) << size;
  }
}

TEST(StraightThrough, ReadsBackWhatPagesDo) {
  const Tensor u = torch::linspace(-5, 5, 4001);
  for (const int bits : {2, 4, 8}) {
    const Tensor coded = kvstore::straight_through(u, torch::full({1}, bits, torch::kInt64));
    for (int i = 0; i < u.size(0); ++i) {
      const auto code = static_cast<uint8_t>(kernels::embedded_code(u[i].item<float>()) >> (8 - bits));
      ASSERT_NEAR(coded[i].item<float>(), kernels::embedded_value(code, bits), 2e-6) << u[i].item<float>();
    }
  }
}

TEST(StraightThrough, HasTheGradientOfTheIdentityWhereThereAreBits) {
  Tensor u = torch::linspace(-3, 3, 5).repeat({1, 1}).requires_grad_();
  kvstore::straight_through(u, torch::tensor({2, 4, 8, 255, 0}, torch::kInt64)).sum().backward();
  EXPECT_TRUE(u.grad().equal(torch::tensor({{1.f, 1.f, 1.f, 1.f, 0.f}})));
}

TEST(StraightThrough, NormIsThePagesOwn) {
  torch::manual_seed(2);
  const Tensor rows = torch::randn({50, 32}) * torch::logspace(-2, 2, 50).unsqueeze(1);
  const Tensor norm = kvstore::row_norm(rows, torch::ones({32}), kernels::kEmbeddedEdge);
  for (int i = 0; i < 50; ++i) {
    const Tensor row = rows[i].contiguous();
    const uint16_t expected = kernels::embedded_row_scalar({row.data_ptr<float>(), 32});
    EXPECT_FLOAT_EQ(norm[i].item<float>(), std::bit_cast<float>(uint32_t{expected} << 16));
  }
}

class FormulaCase : public ::testing::TestWithParam<int> {};

TEST_P(FormulaCase, LogitsAreThoseOfTheTwin) {
  const auto& test = golden().at("cases").at(GetParam());
  const auto dir = golden_dir() / std::string(test.at("model").as_string());
  const auto model = cli::train_model(dir);
  ASSERT_TRUE(model.ok()) << model.error().message;
  const auto decoder = FrozenDecoder::load(*model);
  ASSERT_TRUE(decoder.ok()) << decoder.error().message;

  kvstore::Profile profile{.num_kv_heads = model->num_kv_heads, .head_dim = model->head_dim};
  profile.join = static_cast<int>(test.at("join").as_int64());
  for (int i = 0; i < model->num_layers; ++i)
    profile.num_banks += model->kv_producer.empty() || model->kv_producer[i] == i;
  const auto bits = boost::json::value_to<std::vector<std::vector<int64_t>>>(test.at("bits"));
  std::vector<Tensor> kept;
  for (int v = 0; v < profile.num_banks * 2 * profile.vectors_per_side(); ++v) {
    profile.vectors.push_back(initial_vector(v, profile.dim()));
    kept.push_back(torch::tensor(bits[v % bits.size()], torch::kInt64));
  }
  const torch::NoGradGuard no_grad;
  CodedCache cache(profile);
  cache.parameters(false)[0].copy_(initial_rotation(cache.num_vectors(), profile.dim()));
  cache.set_bits(torch::stack(kept));
  cache.update();

  const auto tokens =
      boost::json::value_to<std::vector<int64_t>>(read_json(dir / "expected.json").at("tokens"));
  const Tensor logits = decoder->forward({torch::tensor(tokens).unsqueeze(0)},
                                         {&cache, static_cast<int>(test.at("sink").as_int64()),
                                          static_cast<int>(test.at("page").as_int64())})[0];
  const auto rows = boost::json::value_to<std::vector<int64_t>>(test.at("rows"));
  const Tensor expected = tensor_of(test.at("logits"));
  EXPECT_LT(largest(logits.index({torch::tensor(rows)}) - expected) / largest(expected), 2e-5);
  // ... and they are not the exact cache's.
  const Tensor exact = decoder->forward({torch::tensor(tokens).unsqueeze(0)}, {})[0];
  EXPECT_GT(largest(exact.index({torch::tensor(rows)}) - expected) / largest(expected), 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Golden, FormulaCase, ::testing::Values(0, 1, 2));

TEST(CodedCache, AShorterPrefixIsTheBeginningOfALongerOne) {
  kvstore::Profile profile{.num_banks = 1, .num_kv_heads = 1, .head_dim = 64};
  for (int v = 0; v < 2; ++v) profile.vectors.push_back(initial_vector(v, 64));
  const torch::NoGradGuard no_grad;
  CodedCache cache(profile);
  cache.parameters(false)[0].copy_(initial_rotation(2, 64));
  cache.update();
  torch::manual_seed(3);
  const Tensor x = torch::randn({1, 1, 10, 64});
  const Tensor y = cache.features(0, kernels::Side::kKey, x);
  double before = (x * x).sum().item<double>();
  for (int groups = 1; groups <= 4; ++groups) {
    Tensor bits = torch::zeros({2, 4}, torch::kInt64);
    bits.slice(1, 0, groups).fill_(CodedCache::kExact);
    cache.set_bits(bits);
    const Tensor read = cache.code(0, kernels::Side::kKey, x);
    const Tensor again = cache.features(0, kernels::Side::kKey, read);
    EXPECT_LT(largest(again.slice(-1, 0, 16 * groups) - y.slice(-1, 0, 16 * groups)), 1e-4) << groups;
    const double error = (read - x).square().sum().item<double>();
    EXPECT_LT(error, before);
    before = error;
  }
  EXPECT_LT(before, 1e-8);
}

}  // namespace
}  // namespace lowkey::testing
