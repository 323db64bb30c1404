// A chat template from anywhere: an error line, or a template that renders or refuses within its bounds.
#include <cstdint>

#include "base/check.h"
#include "coordinator/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey;
  const auto parsed = coordinator::ChatTemplate::parse({reinterpret_cast<const char*>(data), size});
  if (!parsed) {
    LOWKEY_CHECK(parsed.error().code == Code::kBadInput && !parsed.error().message.empty());
    return 0;
  }
  const coordinator::ChatMessage messages[] = {{.role = "system", .content = "Be brief.", .name = {}},
                                               {.role = "user", .content = " Hi ", .name = "Ann"}};
  const auto text = parsed->render(messages, {.variables = R"({"a":[1,{"b":null}]})"}, "<s>", "</s>");
  if (!text) LOWKEY_CHECK(text.error().code == Code::kInvalidArgument && text.error().param == "messages");
  return 0;
}
