// What a leader says of a request: the answer that the client reads is one, valid JSON in every event. The
// first byte chooses the request.
#include <array>
#include <boost/json/parse.hpp>

#include "coordinator/api/answer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/messages.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

const Tokenizer& tokenizer() {
  static const auto made = Tokenizer::from_json(
      R"({"added_tokens": [{"id": 4, "content": "<s>", "special": true}], "decoder": {"type": "ByteLevel"},
          "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u00c3": 3}, "merges": ["a b"]}})",
      "", "fuzz");
  return *made.value();
}

const GenerationRequest& request(uint8_t which) {
  static const auto made = [] {
    const auto read = [](Endpoint endpoint, std::string_view body,
                         std::vector<std::vector<int32_t>> prompts) {
      GenerationRequest request = parse_generation(endpoint, body, {}).value();
      request.prompts = std::move(prompts);
      return request;
    };
    constexpr auto kText = Endpoint::kCompletions, kChat = Endpoint::kChat;
    return std::array{
        read(kText, R"({"prompt": "ab", "stop": ["ba", "aab"], "logprobs": 2})", {{2}}),
        read(kText, R"({"prompt": ["a", "b"], "echo": true, "logprobs": 5, "max_tokens": 0})",
             {{0}, {1, 3, 2}}),
        read(kText, R"({"prompt": "ab", "stream": true, "n": 2, "echo": true, "min_tokens": 2, "stop": "b",
                        "max_tokens": 9, "stream_options": {"include_usage": true}})",
             {{2, 3}}),
        read(kChat, R"({"messages": [{"role": "user", "content": "a"}], "stream": true, "logprobs": true,
                        "top_logprobs": 3, "stop": ["ab"]})",
             {{0, 4}})};
  }();
  return made[which % made.size()];
}

class Exchange final : public HttpExchange {
 public:
  HttpRequest& request() override { return request_; }
  void respond(HttpResponse response) override {
    LOWKEY_CHECK(!answered_ && !streams_);
    answered_ = true;
    check_json(response.body);
  }
  void start_stream(HttpResponse) override {
    LOWKEY_CHECK(!answered_ && !streams_);
    streams_ = true;
  }
  void write(std::string piece) override {
    LOWKEY_CHECK(streams_ && !answered_);
    for (std::string_view rest = piece; !rest.empty();) {
      constexpr std::string_view kHead = "data: ", kError = "event: error\n";
      if (rest.starts_with(kError)) rest.remove_prefix(kError.size());
      const size_t end = rest.find("\n\n");
      LOWKEY_CHECK(rest.starts_with(kHead) && end != std::string_view::npos, "{}", rest);
      const std::string_view event = rest.substr(kHead.size(), end - kHead.size());
      if (event != "[DONE]") check_json(event);
      rest.remove_prefix(end + 2);
    }
  }
  void finish(bool) override {
    LOWKEY_CHECK(streams_ && !answered_);
    answered_ = true;
  }
  void on_disconnect(std::function<void()>) override {}

 private:
  static void check_json(std::string_view text) {
    boost::json::error_code failure;
    (void)boost::json::parse(text, failure);
    LOWKEY_CHECK(!failure, "{}: {}", failure.message(), text);
  }
  HttpRequest request_;
  bool answered_ = false, streams_ = false;
};

}  // namespace
}  // namespace lowkey::coordinator

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey;
  using namespace lowkey::coordinator;
  if (size == 0) return 0;
  const GenerationRequest& asked = request(data[0]);
  const auto reply = std::make_shared<Reply>(
      std::make_shared<Exchange>(), AnswerIdentity{.endpoint = asked.endpoint, .id = "cmpl-1"}, asked);
  std::vector<std::unique_ptr<Answer>> answers;  // null: ended
  for (size_t i = 0; i < asked.choices(); ++i)
    answers.push_back(std::make_unique<Answer>(reply, i, asked, tokenizer()));
  bool failed = false;
  fuzz::for_each_message(data + 1, size - 1, [&](uint8_t choice, std::string_view body) {
    std::unique_ptr<Answer>& answer = answers[choice % answers.size()];
    wire::TokenEvent event;
    if (failed || !answer || !event.ParseFromArray(body.data(), static_cast<int>(body.size()))) return;
    if (choice & 128) answer->move();
    switch (answer->add(event)) {
      case Answer::State::kOpen:
        return;
      case Answer::State::kFailed:
        failed = true;
        return reply->fail(api_error(*answer->error()));
      default:
        answer.reset();
    }
  });
  return 0;
}
