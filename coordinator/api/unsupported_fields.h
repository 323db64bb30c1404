// Parameters of OpenAI, vLLM and llama.cpp that would change the answer and are not honoured here.
#pragma once

#include "coordinator/api/json_fields.h"

namespace lowkey::coordinator {

// Each is accepted with a value that changes nothing, and refused by its name with any other.
void refuse_unsupported(Fields& fields);

}  // namespace lowkey::coordinator
