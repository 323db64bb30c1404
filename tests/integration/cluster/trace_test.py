"""--trace: what the workers did, on both ranks, as a file that a viewer reads: steps hold their layers and operations."""

import collections
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, http  # noqa: E402

LAYERS = 6  # of the demo model
PROMPT_TOKENS, ANSWER_TOKENS = 100, 8


def inside(span, outer):
    return outer["ts"] <= span["ts"] and span["ts"] + span["dur"] <= outer["ts"] + outer["dur"] + 1e-3


class Trace(unittest.TestCase):
    def test_every_worker_writes_what_it_did(self):
        with tempfile.TemporaryDirectory(prefix="lowkey-trace-") as folder:
            with Cluster(workers=2, flags=["--trace", f"{folder}/trace.json"]) as cluster:
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": "demo-model", "prompt": list(range(300, 300 + PROMPT_TOKENS)),
                                       "max_tokens": ANSWER_TOKENS, "ignore_eos": True})
                self.assertEqual(status, 200, answer)
                self.assertEqual(cluster.stop(), 0)
            files = sorted(file.name for file in pathlib.Path(folder).iterdir())
            self.assertEqual(files, ["trace.rank1.json", "trace.rank2.json"])
            leader, follower = (json.loads((pathlib.Path(folder) / file).read_text())["traceEvents"] for file in files)

        for events, name in ((leader, "worker 0.0"), (follower, "worker 0.1")):
            self.assertEqual(events[0]["args"]["name"], name)
            models = [e for e in events if e["name"] == "model"]
            self.assertEqual([e["args"]["rows"] for e in models], [PROMPT_TOKENS] + [1] * (ANSWER_TOKENS - 1))
            for model in models:
                layers = [e for e in events if e["name"] == "layer" and inside(e, model)]
                self.assertEqual([e["args"]["index"] for e in layers], list(range(LAYERS)))
                count = collections.Counter(e["name"] for e in events if "ts" in e and inside(e, model))
                self.assertEqual(count["attend"], LAYERS)
                self.assertEqual(count["all-reduce"], 1 + 2 * LAYERS)
                # Products: where the processor has panels, queries, keys and values are one with their norm, the MLP is one.
                self.assertEqual(count["linear"] + count["heads"] + 2 * count["mlp"], 4 * LAYERS + 1, count)
        steps = [e for e in leader if e["name"] == "step"]
        for name in ("schedule", "execute", "commit", "sample"):
            found = [e for e in leader if e["name"] == name]
            self.assertTrue(found and all(any(inside(e, step) for step in steps) for e in found), name)


if __name__ == "__main__":
    unittest.main()
