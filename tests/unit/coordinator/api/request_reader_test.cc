#include "coordinator/api/request_reader.h"

#include <gtest/gtest.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"

namespace lowkey::coordinator {
namespace {

struct Read {
  bool at_once = false;
  Result<GenerationRequest> result = Error{Code::kInternal, "never called"};
};

// A body, with prompts as token ids so that no tokenizer is needed.
Read read(const std::string& rest) {
  ServedModel model;
  model.id = "m";
  model.max_tokens = 100;
  model.vocab_size = 50;
  WorkPool pool(1, 4);
  boost::asio::io_context io;
  auto work = boost::asio::make_work_guard(io);
  Read read;
  bool called = false;
  const RequestReader reader(io, model, pool);
  EXPECT_TRUE(reader.read(Endpoint::kCompletions, R"({"model":"m","prompt":[1,2])" + rest + "}",
                          [&](Result<GenerationRequest> result) {
                            read.result = std::move(result);
                            called = true;
                            work.reset();
                          }));
  read.at_once = called;
  if (!called) io.run_for(std::chrono::seconds(60));
  EXPECT_TRUE(called);
  return read;
}

// The I/O thread serves everybody: it compiles no schemas.
TEST(RequestReader, SchemasGoToThePool) {
  const Read plain = read(R"(,"max_tokens":3)");
  EXPECT_TRUE(plain.at_once);
  ASSERT_TRUE(plain.result.ok()) << plain.result.error().message;
  EXPECT_EQ(plain.result->max_tokens, 3u);
  const std::string format =
      R"(,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":)";
  const Read schema = read(format + R"({"type":"null"}}})");
  EXPECT_FALSE(schema.at_once);
  ASSERT_TRUE(schema.result.ok()) << schema.result.error().message;
  EXPECT_EQ(schema.result->json_schema, R"({"type":"null"})");
  const Read bad = read(format + R"({"type":"nothing"}}})");
  EXPECT_FALSE(bad.at_once);
  EXPECT_EQ(bad.result.error().param, "response_format.json_schema");
  const Read hidden = read(
      R"(,"response_format":{"type":"json_\u0073chema","json_\u0073chema":{"\u0073chema":{"type":"null"}}})");
  EXPECT_FALSE(hidden.at_once);
  ASSERT_TRUE(hidden.result.ok()) << hidden.result.error().message;
  EXPECT_EQ(hidden.result->json_schema, R"({"type":"null"})");
}

}  // namespace
}  // namespace lowkey::coordinator
