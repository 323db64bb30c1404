// The release; also in CMakeLists.txt.
#pragma once

namespace lowkey {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace lowkey
