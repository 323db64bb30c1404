#!/usr/bin/env python3
"""Writes lowkey.json, the Grafana dashboard, beside this file. A test fails when the two differ."""

import json
import pathlib

HERE = 'instance=~"$instance"'
RANK = HERE + ', rank=~"$rank"'
RATE = "[$__rate_interval]"


def rate(metric, selector=HERE):
    return f"rate({metric}{{{selector}}}{RATE})"


def quantiles(metric, selector=HERE):
    return [(f"histogram_quantile({q}, sum by (le) ({rate(metric + '_bucket', selector)}))", f"p{q * 100:g}")
            for q in (0.5, 0.9, 0.99)]


def mean(metric, selector=HERE):
    return f"sum({rate(metric + '_sum', selector)}) / sum({rate(metric + '_count', selector)})"


def panel(title, description, unit, *queries, kind="timeseries", stack=False, width=8, **options):
    """queries: (PromQL, legend)."""
    custom = {"fillOpacity": 25 if stack else 8, "lineWidth": 1, "showPoints": "never",
              "stacking": {"mode": "normal" if stack else "none"}}
    return {
        "title": title, "description": description, "type": kind, "width": width,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit, "min": options.pop("min", 0),
                                     **({"custom": custom} if kind == "timeseries" else {}), **options},
                        "overrides": []},
        "options": {"timeseries": {"legend": {"displayMode": "list", "placement": "bottom"},
                                   "tooltip": {"mode": "multi", "sort": "desc"}},
                    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
                    "state-timeline": {"showValue": "never", "mergeValues": True}}.get(kind, {}),
        "targets": [{"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend,
                     **({"instant": True, "format": "table"} if kind == "table" else {})}
                    for i, (expr, legend) in enumerate(queries)],
    }


def shares(metric, label):
    """Each value's share of the whole, over the label's values."""
    return (f"sum by ({label}) ({rate(metric)}) / ignoring ({label}) group_left sum({rate(metric)})", "{{" + label + "}}")


def stat(title, description, unit, expr, **options):
    return panel(title, description, unit, (expr, title), kind="stat", width=4, **options)


def speed(family):
    """Bytes over the seconds spent moving them, by direction."""
    return (f"sum by (direction) ({rate(family + '_bytes_total', RANK)}) / "
            f"sum by (direction) ({rate(family + '_seconds_total', RANK)})", "{{direction}}")


ROWS = {
    "Overview": [
        stat("Ready", "Whether each of the chosen clusters has a replica of which every rank answered within its deadline",
             "bool_yes_no", f"min(lowkey_ready{{{HERE}}})"),
        stat("Ranks up", "Ranks that answer heartbeats", "none", f"sum(lowkey_rank_up{{{HERE}}})"),
        stat("Running", "Sequences in the running batch", "none", f"sum(lowkey_num_requests_running{{{HERE}}})"),
        stat("Held", "Requests the coordinator holds: waiting or being answered", "none", f"sum(lowkey_queued_requests{{{HERE}}})"),
        stat("Tokens out", "Tokens sampled per second", "tokens/s", f"sum({rate('lowkey_generation_tokens_total')})"),
        stat("KV cache used", "Fullest rank's share of device pages in use", "percentunit",
             f"max(lowkey_kv_cache_usage_ratio{{{HERE}}})", max=1),
        panel("Processes", "What each process runs", "none", (f"lowkey_info{{{HERE}}}", ""), kind="table", width=24),
    ],
    "Latency": [
        panel("Time to first token", "From the request's arrival to its first token", "s",
              *quantiles("lowkey_time_to_first_token_seconds")),
        panel("Between tokens", "Time between two tokens of one answer", "s", *quantiles("lowkey_inter_token_latency_seconds")),
        panel("Whole request", "From the request's arrival to its last token", "s",
              *quantiles("lowkey_e2e_request_latency_seconds")),
        panel("Queue time", "Waiting in the engine before a request's first step", "s",
              *quantiles("lowkey_request_queue_time_seconds")),
    ],
    "Throughput": [
        panel("Tokens", "Tokens per second: sampled, and prompt tokens by where their cache came from", "tokens/s",
              (f"sum({rate('lowkey_generation_tokens_total')})", "generated"),
              (f"sum by (source) ({rate('lowkey_prompt_tokens_total')})", "prompt: {{source}}")),
        panel("Requests", "Requests answered per second, by finish reason", "reqps",
              (f"sum by (finished_reason) ({rate('lowkey_request_success_total')})", "{{finished_reason}}")),
        panel("HTTP responses", "Responses per second by endpoint and status", "reqps",
              (f"sum by (endpoint, status) ({rate('lowkey_http_requests_total')})", "{{endpoint}} {{status}}")),
        panel("Refused and abandoned", "Requests refused by reason, cancelled because the client went away, and connections "
              "that we ended because the client was too slow", "reqps",
              (f"sum by (reason) ({rate('lowkey_rejected_requests_total')})", "refused: {{reason}}"),
              (f"sum({rate('lowkey_client_disconnects_total')})", "client disconnected"),
              (f"sum by (reason) ({rate('lowkey_clients_cut_off_total')})", "cut off: {{reason}}")),
        panel("Connections", "Open client connections", "none", (f"sum(lowkey_http_connections{{{HERE}}})", "connections")),
        panel("Request sizes", "Mean prompt and answer length", "tokens",
              (mean("lowkey_request_prompt_tokens"), "prompt"), (mean("lowkey_request_generation_tokens"), "answer")),
    ],
    "Scheduler": [
        panel("Sequences", "In the running batch, and waiting for memory or a slot", "none",
              (f"sum(lowkey_num_requests_running{{{HERE}}})", "running"),
              (f"sum(lowkey_num_requests_waiting{{{HERE}}})", "waiting")),
        panel("Queues against their bounds", "1 means that the next request is refused with 429", "percentunit",
              (f"sum(lowkey_queued_requests{{{HERE}}}) / sum(lowkey_queue_limit_requests{{{HERE}}})", "coordinator"),
              (f"sum(lowkey_num_requests_waiting{{{HERE}}}) / sum(lowkey_engine_queue_limit_requests{{{HERE}}})", "engine")),
        panel("Step duration", "One engine iteration", "s", *quantiles("lowkey_step_seconds")),
        panel("Step size", "Mean tokens and sequences computed in a step", "none",
              (mean("lowkey_step_tokens"), "tokens"), (mean("lowkey_step_sequences"), "sequences")),
        panel("Preemption", "Sequences preempted, and tokens computed again, by cause", "ops",
              (f"sum({rate('lowkey_num_preemptions_total')})", "preemptions"),
              (f"sum by (cause) ({rate('lowkey_recomputed_tokens_total')})", "tokens again: {{cause}}")),
        panel("Answers held to a schema", "Sets of allowed tokens, found or computed beside the step", "ops",
              (f"sum by (source) ({rate('lowkey_grammar_masks_total')})", "{{source}}")),
        panel("Time of a set of allowed tokens", "Mean of computing one, and of the steps that had to wait for one", "s",
              (mean("lowkey_grammar_mask_seconds"), "computing"), (mean("lowkey_grammar_wait_seconds"), "waiting")),
        panel("Time in collectives", "Share of a second that each rank spends in all-reduces through the host; NCCL's run on the GPU, inside the step", "percentunit",
              (f"sum by (rank) ({rate('lowkey_collective_seconds_total', RANK)})", "rank {{rank}}")),
        panel("Steps by launch", "Steps of the model on each rank: call by call, recorded, or replayed from a graph", "ops",
              (f"sum by (launch) ({rate('lowkey_model_steps_total', RANK)})", "{{launch}}")),
        panel("Recorded steps", "Graphs that each rank keeps for replay", "none",
              (f"sum by (rank) (lowkey_step_graphs{{{RANK}}})", "rank {{rank}}")),
        panel("Memory of recorded steps", "Device memory that the graphs take", "bytes",
              (f"sum by (rank) (lowkey_step_graph_bytes{{{RANK}}})", "rank {{rank}}")),
    ],
    "KV memory by tier and state": [
        panel("Device tier", "Bytes of the workers' page pools by state", "bytes",
              (f'sum by (state) (lowkey_kv_bytes{{{RANK}, tier="device", state!="capacity"}})', "{{state}}"), stack=True),
        panel("Host tier", "Bytes of the stores' pools by state", "bytes",
              (f'sum by (state) (lowkey_kv_bytes{{{RANK}, tier="host", state!="capacity"}})', "{{state}}"), stack=True),
        panel("Disk tier", "Bytes below the stores by state", "bytes",
              (f'sum by (state) (lowkey_kv_bytes{{{RANK}, tier="disk", state!="capacity"}})', "{{state}}"), stack=True),
        panel("Stores' memory", "What the stores' pools asked for, and what is really there", "bytes",
              (f"sum by (kind) (lowkey_store_pool_bytes{{{RANK}}})", "{{kind}}")),
        panel("Capacity", "What each rank's pool may hold", "bytes",
              (f'lowkey_kv_bytes{{{RANK}, state="capacity"}}', "{{role}} {{rank}} ({{tier}})")),
        panel("Pages", "Pages by tier and state", "none",
              (f'sum by (tier, state) (lowkey_kv_pages{{{RANK}, state!="capacity"}})', "{{tier}} {{state}}")),
        panel("Used share", "Share of each rank's device pages in use", "percentunit",
              (f"lowkey_kv_cache_usage_ratio{{{RANK}}}", "rank {{rank}}"), max=1),
        panel("Bytes per token", "Marginal cost of one more token, over the ranks of one replica", "bytes",
              (f"""sum(lowkey_kv_bytes_per_token{{{HERE}}}) / sum(lowkey_replicas{{{HERE}, state!="gone"}})""", "one replica")),
        panel("Compression", "bf16 bytes over our bytes for a sequence of 8192 tokens, everything counted", "x",
              (f"avg(lowkey_kv_compression_ratio{{{HERE}}})", "ratio")),
    ],
    "Prefix reuse": [
        panel("Hit share", "Share of prompt tokens found in a cache, by tier", "percentunit",
              (f"sum by (tier) ({rate('lowkey_prefix_cache_hits_total')}) / ignoring (tier) group_left "
               f"sum({rate('lowkey_prefix_cache_queries_total')})", "{{tier}}"), stack=True, max=1),
        panel("Spilled pages", "Pages offered to a store, by outcome", "ops",
              (f"sum by (outcome) ({rate('lowkey_kv_spill_pages_total', RANK)})", "{{outcome}}")),
        panel("Restored pages", "Pages asked of a store, by outcome", "ops",
              (f"sum by (outcome) ({rate('lowkey_kv_restore_pages_total', RANK)})", "{{outcome}}")),
        panel("Restore duration", "Lookup to last page landed", "s", *quantiles("lowkey_kv_restore_seconds", RANK)),
        panel("Store", "Top levels and whole pages given up (least recently used first), and leases or reservations that ran "
              "out", "ops",
              (f"sum({rate('lowkey_store_level_drops_total')})", "top levels"),
              (f"sum({rate('lowkey_store_evicted_pages_total')})", "evicted"),
              (f"sum by (what) ({rate('lowkey_store_expired_total')})", "expired: {{what}}")),
        panel("Leases", "Pages leased to readers now", "none", (f"sum by (rank) (lowkey_store_leases{{{HERE}}})", "store {{rank}}")),
    ],
    "Restores": [
        panel("Decisions", "What became of prefixes that are not on the device: restored at all levels, begun at the first, "
              "computed again because that was predicted to be faster, or waited for", "ops",
              (f"sum by (decision) ({rate('lowkey_prefix_decisions_total')})", "{{decision}}")),
        panel("To the first level", "Admission to the first level of a restored prefix in place on every rank", "s",
              *quantiles("lowkey_restore_first_level_seconds")),
        panel("Regret", "Seconds per second by which decisions took longer than the alternative was predicted to", "percentunit",
              (f"sum by (decision) ({rate('lowkey_cost_regret_seconds_total')})", "{{decision}}")),
        panel("Rates of the cost model", "Bytes per second, as measured: restores by the slowest rank, spills with copy, encoding "
              "and checksums", "binBps",
              (f"lowkey_cost_restore_bytes_per_second{{{RANK}}}", "restore, leader {{rank}}"),
              (f"lowkey_cost_spill_bytes_per_second{{{RANK}}}", "spill, leader {{rank}}")),
        panel("Prefill rate of the cost model", "Prompt tokens per second, as measured", "tokens/s",
              (f"lowkey_cost_prefill_tokens_per_second{{{RANK}}}", "leader {{rank}}")),
        panel("Latency of the cost model", "What a restore takes besides its bytes, as measured", "s",
              (f"lowkey_cost_restore_latency_seconds{{{RANK}}}", "leader {{rank}}")),
        panel("Prompt tokens to compute", "Of admitted and waiting requests; what a new one waits behind", "none",
              (f"lowkey_queued_prompt_tokens{{{RANK}}}", "leader {{rank}}")),
        panel("Bytes in flight", "On their way to and from stores; bounded", "bytes",
              (f"sum(lowkey_spill_bytes_in_flight{{{RANK}}})", "spill"),
              (f"sum(lowkey_restore_bytes_in_flight{{{RANK}}})", "restore"),
              (f"sum(lowkey_transfer_quarantined_bytes{{{RANK}}})", "given up, not yet let go")),
        panel("Waiting", "Published pages not yet spilled, and restores that some rank still answers for", "none",
              (f"sum(lowkey_spill_queue_pages{{{RANK}}})", "pages to spill"),
              (f"sum(lowkey_restores_in_flight{{{RANK}}})", "restores")),
        panel("Evicted too early", "How long after its eviction from a store a page was wanted again", "s",
              *quantiles("lowkey_store_evict_to_reuse_seconds", RANK)),
    ],
    "Disk": [
        panel("Pages", "Pages written and read, and those that were not, by outcome", "ops",
              (f"sum by (outcome) ({rate('lowkey_disk_pages_total', RANK)})", "{{outcome}}")),
        panel("Traffic", "Bytes per second to and from disk", "binBps",
              (f"sum by (direction) ({rate('lowkey_disk_bytes_total', RANK)})", "{{direction}}")),
        panel("Speed", "Bytes over the time spent in disk transfers", "binBps",
              speed("lowkey_disk")),
    ],
    "Pressure": [
        panel("What gave way", "Cheapest first: top levels of idle pages, idle pages, top levels of pages in use, sequences", "ops",
              (f"sum by (pages) ({rate('lowkey_kv_level_drops_total')})", "top levels: {{pages}}"),
              (f"sum({rate('lowkey_kv_evicted_pages_total')})", "idle pages"),
              (f"sum({rate('lowkey_num_preemptions_total')})", "preempted sequences")),
        panel("Levels read", "Pages that steps read, by the number of levels read", "percentunit",
              shares("lowkey_pages_read_total", "levels"), stack=True, max=1),
        panel("Coarse share", "Share of computed tokens that saw a page below all its levels", "percentunit",
              (f"sum({rate('lowkey_coarse_tokens_total')}) / (sum({rate('lowkey_generation_tokens_total')}) + "
               f"""sum({rate('lowkey_prompt_tokens_total', HERE + ', source="computed"')}))""", "coarse"), max=1),
    ],
    "Routing and replicas": [
        panel("Routed requests", "Requests per second by why their replica was chosen: its prefix pages, its load, its turn, or "
              "because there was no other", "reqps",
              (f"sum by (reason) ({rate('lowkey_routed_requests_total')})", "{{reason}}")),
        panel("Predicted against measured", "Median time to first token: as routing predicted it, and as it was", "s",
              (f"histogram_quantile(0.5, sum by (le) ({rate('lowkey_predicted_time_to_first_token_seconds_bucket')}))", "predicted"),
              (f"histogram_quantile(0.5, sum by (le) ({rate('lowkey_time_to_first_token_seconds_bucket')}))", "measured")),
        panel("Index", "Pages that routing knows of, by where they are", "none",
              (f"sum by (holder) (lowkey_router_index_pages{{{HERE}}})", "{{holder}}")),
        panel("Index traffic", "Pages announced by workers and stores, and times that a sender had to send everything again", "ops",
              (f"sum by (kind) ({rate('lowkey_prefix_events_total')})", "{{kind}}"),
              (f"sum({rate('lowkey_router_resyncs_total')})", "resync")),
        panel("Replicas", "Replicas by state", "none", (f"sum by (state) (lowkey_replicas{{{HERE}}})", "{{state}}"), stack=True),
        panel("Come and gone", "Workers and stores that joined, left, were lost, came back after the coordinator's restart, were "
              "refused, or did not ask for their place in time; answers that went on elsewhere, or could not", "ops",
              (f"sum by (event) ({rate('lowkey_membership_events_total')})", "{{event}}"),
              (f"sum by (outcome) ({rate('lowkey_continued_requests_total')})", "answers: {{outcome}}")),
    ],
    "Transports": [
        panel("Pairs", "What each pair of processes uses for one-sided transfers, and what its hosts could", "none",
              (f"lowkey_transport_info{{{RANK}}}", ""), kind="table", width=24),
        panel("Not as expected", "1 where a pair uses another transport than its hosts could", "none",
              (f"lowkey_transport_mismatch{{{RANK}}}", "{{role}} {{rank}} - {{peer_role}} {{peer_rank}}"), max=1),
        panel("Bandwidth at start", "Measured between each pair, by direction and memory", "binBps",
              (f"lowkey_transport_bandwidth_bytes_per_second{{{RANK}}}",
               "{{role}} {{rank}} - {{peer_role}} {{peer_rank}} {{direction}} {{memory}}"), width=16),
    ],
    "Transfers": [
        panel("Bytes", "One-sided transfers between workers and stores", "binBps",
              (f"sum by (direction, transport) ({rate('lowkey_transfer_bytes_total', RANK)})", "{{direction}} {{transport}}")),
        panel("Speed", "Bytes over the time spent in transfers: how fast they go while they go", "binBps",
              speed("lowkey_transfer")),
        panel("Failures", "Transfers that failed or timed out, and peers lost, by reason", "ops",
              (f"sum by (direction) ({rate('lowkey_transfer_failures_total', RANK)})", "transfer: {{direction}}"),
              (f"sum by (reason) ({rate('lowkey_peer_losses_total', RANK)})", "peer: {{reason}}")),
        panel("Control messages", "Messages per second of all processes", "ops",
              (f"sum by (direction) ({rate('lowkey_control_messages_total', RANK)})", "{{direction}}")),
        panel("Control bytes", "Bytes of control messages per second", "binBps",
              (f"sum by (direction) ({rate('lowkey_control_bytes_total', RANK)})", "{{direction}}")),
    ],
    "Ranks": [
        panel("Up", "1 while the rank answers heartbeats", "bool_yes_no",
              (f"lowkey_rank_up{{{HERE}}}", "{{peer_role}} {{peer_rank}}"), kind="state-timeline", width=24),
        panel("Memory", "Resident memory by kind; anonymous and shared are what the process takes", "bytes",
              (f"lowkey_process_memory_bytes{{{RANK}}}", "{{role}} {{rank}} {{kind}}")),
        panel("Weights", "Packed weights per rank", "bytes", (f"lowkey_weight_bytes{{{RANK}}}", "rank {{rank}}")),
        panel("Rounding of weights", "Relative RMS error by kind of matrix, where weights are held in few bits", "percentunit",
              (f"lowkey_weight_rounding_error_ratio{{{RANK}}}", "rank {{rank}} {{kind}}")),
        panel("CPU", "Cores that each process keeps busy", "cores", (f"{rate('lowkey_process_cpu_seconds_total', RANK)}", "{{role}} {{rank}}")),
        panel("Start", "Process start to ready", "s", (f"lowkey_start_seconds{{{RANK}}}", "{{role}} {{rank}}")),
    ],
}


def variable(name, query, label):
    return {"name": name, "label": label, "type": "query", "query": {"query": query, "refId": name},
            "datasource": {"type": "prometheus", "uid": "${datasource}"}, "refresh": 2, "sort": 3,
            "multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"}}


def layout():
    """Rows of panels, left to right, top to bottom, on Grafana's grid of 24 columns."""
    panels, y = [], 0
    for title, members in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y, x, height = y + 1, 0, 0
        for member in members:
            width = member.pop("width")
            if x + width > 24:
                x, y, height = 0, y + height, 0
            h = {"stat": 4, "table": 6, "state-timeline": 6}.get(member["type"], 8)
            panels.append({**member, "gridPos": {"x": x, "y": y, "w": width, "h": h}})
            x, height = x + width, max(height, h)
        y += height
    return [{"id": i + 1, **p} for i, p in enumerate(panels)]


def dashboard():
    return {
        "uid": "lowkey", "title": "lowkey", "tags": ["lowkey"], "schemaVersion": 39, "version": 1, "editable": True,
        "refresh": "5s", "time": {"from": "now-15m", "to": "now"}, "timezone": "browser", "graphTooltip": 1,
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus",
             "current": {"text": "Prometheus", "value": "lowkey-prometheus"}},
            variable("instance", "label_values(lowkey_ready, instance)", "Cluster"),
            variable("rank", 'label_values(lowkey_process_cpu_seconds_total{instance=~"$instance"}, rank)', "Rank"),
        ]},
        "panels": layout(),
    }


def text():
    """JSON with one panel a line, so that a change shows as a change."""
    whole = dashboard()
    panels = ",\n".join(json.dumps(p) for p in whole.pop("panels"))
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items())
    return f'{{\n{head},\n"panels": [\n{panels}\n]\n}}\n'


if __name__ == "__main__":
    (pathlib.Path(__file__).parent / "lowkey.json").write_text(text())
