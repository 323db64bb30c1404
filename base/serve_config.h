// The settings of `lowkey serve`, each declared once: name, default, unit or range, help. Flags, LOWKEY_...
// variables, the config file, the printed defaults and --help all come from visit_fields().
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace lowkey {

struct ServeConfig {
  std::string model;
  std::string served_model_name;  // empty: what the folder or file is called
  std::string chat_template;      // file; empty: the model's own
  int max_context = 0;            // tokens; 0: the model's
  std::string recipe;             // file; empty: exact
  std::string profile;            // file; empty: profiles/<recipe>.profile.safetensors in the model's folder
  std::string listen = "127.0.0.1";
  int port = 8000;
  int tp = 0;  // 0: from the number of ranks
  int replicas = 0;
  int stores = -1;
  std::string dtype = "bf16";
  std::string weights = "auto";
  std::string device = "auto";
  uint64_t kv_bytes = 0;             // per job and host or GPU, divided by its worker ranks; 0: see the help
  uint64_t host_bytes = 512 * kMiB;  // per job and host, divided by its stores
  std::string api_key;
  int max_queued = 256;
  int drain_seconds = 30;
  int step_tokens = 512;
  int max_batch = 64;
  int step_deadline_seconds = 30;
  std::string cluster_secret;  // empty: made at start and shared by MPI
  std::string cluster_listen;
  int cluster_port = 0;  // of the coordinator; fixed: others may join, and a restarted one is found again
  std::string join;      // HOST:PORT of a running cluster's coordinator
  int reconnect_seconds = 60;
  std::string routing = "kv";
  std::string pressure = "ladder";
  int min_levels = 1;
  std::string disk;
  uint64_t disk_bytes = 0;
  std::string require_transport = "any";
  int threads = 0;  // compute threads per worker; 0: cores / ranks on the host
  std::string trace;  // file
  std::string log_level = "info";

  // v(name, member, Range or choices, help): `name` as in --name; LOWKEY_NAME with underscores.
  template <class Self, class Visitor>
  static void visit_fields(Self& c, Visitor&& v) {
    v.text("model", c.model, "model folder (config.json, *.safetensors, tokenizer.json or tokenizer.model) or GGUF file");
    v.text("served-model-name", c.served_model_name,
           "the model's id in the API (default: the folder's name, or the file's without .gguf)");
    v.text("chat-template", c.chat_template, "Jinja file in place of the model's chat template");
    v.number("max-context", c.max_context, 0, 1 << 28,
             "tokens of prompt and answer together; 0: the model's context");
    v.text("recipe", c.recipe, "recipe file of the KV cache (default: exact)");
    v.text("profile", c.profile, "profile file (default: profiles/<recipe>.profile.safetensors in the model's folder)");
    v.text("listen", c.listen, "address the HTTP server binds to");
    v.number("port", c.port, 0, 65535, "HTTP port; 0 takes a free one and prints it");
    v.number("tp", c.tp, 0, 1024, "tensor-parallel ranks of a replica; 0: from the number of ranks");
    v.number("replicas", c.replicas, 0, 1024, "replicas; 0: one");
    v.number("stores", c.stores, -1, 64, "stores; -1: one");
    v.choice("dtype", c.dtype, {"bf16", "fp32"}, "weights and exact KV; fp32 for exactness");
    v.choice("weights", c.weights, {"auto", "full", "int8", "int4"},
             "weight matrices; auto: as a GGUF file has them (Q8_0, Q5_0, Q4_0, Q4_K; Q6_K in 8 bits), else full: in "
             "--dtype; int8, int4: rounded in blocks of 32 (CPU only)");
    v.choice("device", c.device, {"auto", "cpu", "cuda"},
             "what workers compute on; auto: GPUs where every worker finds one, else the CPU");
    v.bytes("kv-bytes", c.kv_bytes, 0,
            "KV cache per host, or per GPU, of this job, divided by its worker ranks; 0: 512 MiB per host, or what "
            "the weights leave of a GPU");
    v.bytes("host-bytes", c.host_bytes, 1 * kMiB, "host memory tier per host, of this job, divided by its stores");
    v.secret("api-key", c.api_key, "clients must send one of these, comma-separated, as a Bearer token; empty: no check");
    v.number("max-queued", c.max_queued, 1, 1000000, "requests the coordinator holds before it answers 429");
    v.number("drain-seconds", c.drain_seconds, 0, 3600, "time running requests get after SIGTERM");
    v.number("step-tokens", c.step_tokens, 1, 65536, "token budget of one engine step");
    v.number("max-batch", c.max_batch, 1, 4096, "sequences that run together");
    v.number("step-deadline-seconds", c.step_deadline_seconds, 1, 3600,
             "a step or collective longer than this is a failure");
    v.secret("cluster-secret", c.cluster_secret,
             "joins processes to the cluster; empty: made at start, shared by MPI");
    v.number("cluster-port", c.cluster_port, 0, 65535,
             "port of the coordinator for the cluster's processes; 0: any, and nobody can join or re-join");
    v.text("join", c.join, "HOST:PORT (cluster port) of a running coordinator: workers join it as a further replica, a store as a "
           "further store");
    v.number("reconnect-seconds", c.reconnect_seconds, 0, 3600,
             "workers and stores wait so long for a restarted coordinator (needs --cluster-port)");
    v.choice("routing", c.routing, {"kv", "least-loaded", "round-robin"},
             "which replica gets a request: kv predicts the time to the first token");
    v.choice("pressure", c.pressure, {"ladder", "preempt"},
             "when KV memory is short: drop levels of cold pages before preempting, or preempt only");
    v.number("min-levels", c.min_levels, 1, 3, "levels that are read of every page, unless a request asks for more");
    v.text("disk", c.disk, "folder of the disk tier below the stores; empty: none");
    v.bytes("disk-bytes", c.disk_bytes, 0, "disk tier per host, of this job, divided by its stores");
    v.choice("require-transport", c.require_transport, {"any", "expected", "shm", "rdma"},
             "refuse to start when a pair of processes uses another transport; a store that comes later that way is not used");
    v.text("cluster-listen", c.cluster_listen, "address the control ports bind to; empty: loopback on one host, else the first external address");
    v.number("threads", c.threads, 0, 1024, "compute threads per worker; 0: cores / workers of the host");
    v.text("trace", c.trace,
           "where a step's time goes: every worker writes FILE with .rankN in its name when it ends (Chrome trace format)");
    v.choice("log-level", c.log_level, {"debug", "info", "warning", "error"},
             "least severe line that is printed");
  }
};

}  // namespace lowkey
