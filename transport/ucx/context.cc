#include "transport/ucx/context.h"

#include <cstdlib>

#include "transport/ucx/ucx_status.h"

namespace lowkey::transport {
namespace {

struct ReleaseConfig {
  void operator()(ucp_config_t* config) const { ucp_config_release(config); }
};

Status set(ucp_config_t* config, const char* name, const std::string& value) {
  const ucs_status_t status = ucp_config_modify(config, name, value.c_str());
  if (status != UCS_OK) return ucx_error(status, fmt::format("UCX setting {}={}", name, value));
  return {};
}

}  // namespace

Result<std::shared_ptr<Context>> Context::create(Kind kind, const std::string& net_device) {
  route_ucx_log();
  ucp_config_t* raw = nullptr;
  if (ucs_status_t status = ucp_config_read(nullptr, nullptr, &raw); status != UCS_OK) {
    return ucx_error(status, "reading the UCX settings");
  }
  std::unique_ptr<ucp_config_t, ReleaseConfig> config(raw);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  if (kind == Kind::kControl) {
    params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
    params.name = "control";
    if (!std::getenv("UCX_TLS")) LOWKEY_TRY(set(raw, "TLS", "tcp"));
    if (!net_device.empty() && !std::getenv("UCX_NET_DEVICES"))
      LOWKEY_TRY(set(raw, "NET_DEVICES", net_device));
  } else {
    params.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
    params.name = "same-host";
    LOWKEY_TRY(set(raw, "TLS", "posix,sysv,cma,self"));
  }
  ucp_context_h handle = nullptr;
  if (ucs_status_t status = ucp_init(&params, raw, &handle); status != UCS_OK) {
    return ucx_error(status, fmt::format("UCX context '{}'", params.name));
  }
  return std::shared_ptr<Context>(new Context(handle));
}

bool Context::reaches_gpu_memory() const {
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  return ucp_context_query(handle_, &attributes) == UCS_OK &&
         (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
}

}  // namespace lowkey::transport
