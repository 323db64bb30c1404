#include "kvstore/page/page_ref.h"

#include "kvstore/page/page_pool.h"

namespace lowkey::kvstore {

PageRef::PageRef(PagePool* pool, PageId id) : pool_(pool), id_(id) {
  pool_->add_reference(id_);
}
PageRef::PageRef(const PageRef& other) : pool_(other.pool_), id_(other.id_) {
  if (pool_ != nullptr) pool_->add_reference(id_);
}
PageRef::~PageRef() {
  if (pool_ != nullptr) pool_->drop_reference(id_);
}
std::span<const SlabId> PageRef::slabs() const {
  return pool_->slabs_of(id_);
}
int PageRef::levels() const {
  return pool_->records_[id_].levels;
}
bool PageRef::lossy() const {
  return pool_->records_[id_].lossy;
}
uint32_t PageRef::version() const {
  return pool_->records_[id_].version;
}

TailRef::~TailRef() {
  if (pool_ != nullptr) pool_->drop_tail(id_);
}

}  // namespace lowkey::kvstore
