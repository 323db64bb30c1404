#include "kvstore/service/page_staging.h"

#include "base/hash128.h"

namespace lowkey::kvstore {

namespace {

uint8_t all_levels(int levels) {
  return static_cast<uint8_t>((1u << levels) - 1);
}

void drop_levels(PageWrite& page, int levels) {
  for (int level = levels; level < kernels::kMaxLevels; ++level) {
    if ((page.header.levels_present >> level & 1) == 0) continue;
    page.slabs[level] = {};
    page.header.checksums[level] = 0;
  }
  page.header.levels_present &= all_levels(levels);
}

Staged transcode(PageWrite& page, PageTranscoder& transcoder, TransferBuffers& buffers) {
  const kernels::PageLayout& spilled = transcoder.spilled();
  if (page.header.levels_present != all_levels(transcoder.hot().num_levels)) return Staged::kUnfit;
  const int slabs = spilled.num_levels + (page.header.has_sink ? 1 : 0);
  size_t bytes = 0;
  for (int i = 0; i < slabs; ++i) bytes += spilled.slab_bytes[i];
  const auto buffer = buffers.take(bytes);
  if (!buffer) return Staged::kNoMemory;
  PageTranscoder::Slabs target;
  std::byte* at = buffer->data.get();
  for (int i = 0; i < slabs; ++i) {
    target[i] = {at, spilled.slab_bytes[i]};
    at += target[i].size();
  }
  transcoder.spill(page.slabs, target);
  for (size_t i = 0; i < target.size(); ++i) page.slabs[i] = target[i];
  page.keep_alive = buffer;  // and the copy of the hot page goes
  page.header.levels_present = all_levels(spilled.num_levels);
  page.checksummed = false;
  return Staged::kReady;
}

}  // namespace

bool needs_staging(const PageWrite& page, const SpillFormat& format) {
  return format.transcoder || !page.checksummed || page.header.levels_present >> format.levels != 0;
}

Staged stage(PageWrite& page, const SpillFormat& format, TransferBuffers& buffers) {
  if (page.arriving && !page.arriving->wait()) return Staged::kUnfit;
  if (format.transcoder) {
    if (const Staged staged = transcode(page, *format.transcoder, buffers); staged != Staged::kReady)
      return staged;
  } else {
    drop_levels(page, format.levels);
  }
  for (size_t i = 0; i < page.slabs.size() && !page.checksummed; ++i)
    page.header.checksums[i] = page.slabs[i].empty() ? 0 : slab_checksum(page.slabs[i]);
  page.checksummed = true;
  page.header.header_checksum = page.header.compute_checksum();
  return Staged::kReady;
}

}  // namespace lowkey::kvstore
