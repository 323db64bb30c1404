#include "kvstore/tier/disk/disk_record.h"

#include <cstring>

#include "base/hash128.h"

namespace lowkey::kvstore {

namespace {

constexpr uint64_t kSegmentMagic = 0x31676573796b776c;  // "lwkyseg1"
constexpr uint64_t kRecordMagic = 0x31636572796b776c;   // "lwkyrec1"

struct SegmentFields {
  uint64_t magic = kSegmentMagic;
  uint32_t disk_version = kDiskFormatVersion;
  uint32_t page_version = kernels::kPageFormatVersion;
  uint64_t number = 0;
  uint64_t checksum = 0;  // of the block with this field zero
};

struct RecordFields {
  uint64_t magic = kRecordMagic;
  uint64_t checksum = 0;  // likewise
  uint64_t segment = 0;
  SlabBytes slab_bytes{};
  kernels::PageHeader header;
};
static_assert(sizeof(RecordFields) <= kDiskAlignment);

template <class Fields>
DiskBlock pack(Fields fields) {
  DiskBlock block{};
  fields.checksum = 0;
  std::memcpy(block.data(), &fields, sizeof fields);
  fields.checksum = slab_checksum(block);
  std::memcpy(block.data(), &fields, sizeof fields);
  return block;
}

template <class Fields>
std::optional<Fields> unpack(std::span<const std::byte, kDiskAlignment> block) {
  Fields fields;
  std::memcpy(static_cast<void*>(&fields), block.data(), sizeof fields);
  if (fields.magic != Fields().magic) return std::nullopt;
  DiskBlock copy;
  std::memcpy(copy.data(), block.data(), copy.size());
  Fields unsummed = fields;
  unsummed.checksum = 0;
  std::memcpy(copy.data(), &unsummed, sizeof unsummed);
  if (slab_checksum(copy) != fields.checksum) return std::nullopt;
  return fields;
}

}  // namespace

uint64_t DiskRecord::bytes() const {
  return slab_offset(kernels::kMaxSlabs);
}

uint64_t DiskRecord::slab_offset(int i) const {
  uint64_t offset = kDiskAlignment;
  for (int before = 0; before < i; ++before) offset += disk_rounded(slab_bytes[before]);
  return offset;
}

DiskBlock pack_segment(uint64_t number) {
  return pack(SegmentFields{.number = number});
}

bool is_segment(std::span<const std::byte, kDiskAlignment> block, uint64_t number) {
  const auto fields = unpack<SegmentFields>(block);
  return fields && fields->disk_version == kDiskFormatVersion &&
         fields->page_version == kernels::kPageFormatVersion && fields->number == number;
}

DiskBlock pack_record(const DiskRecord& record) {
  return pack(
      RecordFields{.segment = record.segment, .slab_bytes = record.slab_bytes, .header = record.header});
}

std::optional<DiskRecord> unpack_record(std::span<const std::byte, kDiskAlignment> block, uint64_t segment) {
  const auto fields = unpack<RecordFields>(block);
  if (!fields || fields->segment != segment) return std::nullopt;
  const kernels::PageHeader& header = fields->header;
  if (header.version != kernels::kPageFormatVersion || header.levels_present == 0) return std::nullopt;
  return DiskRecord{segment, fields->slab_bytes, header};
}

}  // namespace lowkey::kvstore
