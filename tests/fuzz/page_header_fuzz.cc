// A page header from a peer or a file: refused, or the very bytes that came in. Once as it is and once with
// its checksum made right, or nothing would get behind that check.
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "kvstore/service/page_io.h"

static void parse(std::string_view bytes) {
  using namespace lowkey;
  const auto header = kvstore::parse_page_header(bytes);
  if (!header) {
    LOWKEY_CHECK(!header.error().message.empty());
    return;
  }
  LOWKEY_CHECK(kvstore::page_header_bytes(*header) == bytes);
  LOWKEY_CHECK(kvstore::num_slabs(*header) <= kernels::kMaxSlabs, "{} slabs", kvstore::num_slabs(*header));
  const kvstore::PageRead wanted{.identity = header->identity, .tokens_hash = header->tokens_hash};
  const kvstore::PageOrigin origin{.rank = header->rank, .num_ranks = header->num_ranks};
  (void)kvstore::check_page(*header, wanted, origin).ok();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parse({reinterpret_cast<const char*>(data), size});
  lowkey::kernels::PageHeader header;
  std::memcpy(&header, data, std::min(size, sizeof(header)));
  header.header_checksum = header.compute_checksum();
  parse(lowkey::kvstore::page_header_bytes(header));
  return 0;
}
