// Slab transfers over UCX: shared memory to peers on this host, RMA over the control endpoint to others.
#pragma once

#include <map>
#include <memory>

#include "transport/core/batch_plane.h"
#include "transport/ucx/memory_handle.h"
#include "transport/ucx/progress_loop.h"
#include "transport/ucx/ucx_link.h"

namespace lowkey::transport {

class UcxDataPlane final : public BatchPlane {
 public:
  static Result<std::unique_ptr<UcxDataPlane>> create(std::shared_ptr<SessionContext> context,
                                                      std::shared_ptr<UcxHub> control);
  ~UcxDataPlane() override;

  std::string address() const override { return address_; }
  Result<std::shared_ptr<MemoryPool>> allocate(size_t bytes) override;
  Result<std::shared_ptr<RemotePool>> open(const ConnectionPtr& peer, const std::string& data_address,
                                           const std::string& remote_handle) override;

 protected:
  Result<bool> start(PoolView& pool, TransferKind kind, const Transfer& transfer,
                     Completion completed) override;
  Result<bool> flush(PoolView& pool, Completion completed) override;
  void connection_down(uint64_t connection_id) override;

 private:
  UcxDataPlane(std::shared_ptr<SessionContext> context, std::shared_ptr<UcxHub> control,
               std::shared_ptr<Worker> same_host, std::string address);
  Result<std::unique_ptr<RemoteKey>> same_host_key(uint64_t connection_id, const std::string& data_address,
                                                   const std::string& packed);
  ProgressLoop& loop_of(const Endpoint& endpoint);

  const std::shared_ptr<UcxHub> control_;
  const std::shared_ptr<Worker> same_host_;
  const std::shared_ptr<ProgressLoop> same_host_loop_;
  const std::string address_;                                // of the same-host worker, in hexadecimal
  std::map<uint64_t, std::shared_ptr<Endpoint>> endpoints_;  // same host, by connection
};

}  // namespace lowkey::transport
