#include "coordinator/api/api_error.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "coordinator/api/route_table.h"

namespace lowkey::coordinator {
namespace {

std::string message_of(const HttpResponse& response) {
  const auto body = boost::json::parse(response.body);  // throws what is no JSON
  return boost::json::value_to<std::string>(body.at("error").at("message"));
}

// A path or a model's name is bytes of the client's choice, an answer is UTF-8.
TEST(ApiError, WhatItQuotesIsUtf8) {
  EXPECT_EQ(message_of(error_http(model_not_found("a\xff"
                                                  "b",
                                                  "demo"))),
            "The model `a\xEF\xBF\xBD"
            "b` does not exist; this server has `demo`.");
  HttpRequest request{.method = "GET", .path = "/\xed", .query = "", .authorization = "", .body = ""};
  const auto refusal = screen(request, ApiKeys(""));
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->status, 404);
  EXPECT_EQ(message_of(*refusal), "There is nothing at /\xEF\xBF\xBD.");
}

}  // namespace
}  // namespace lowkey::coordinator
