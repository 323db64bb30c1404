"""`lowkey bench` against a live cluster: what it reports is what was asked for."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from support.cluster import ROOT, Cluster, binary

TRACES = ROOT / "tests" / "golden" / "trace"


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(flags=["--api-key", "sesame"]).start()
        cls.addClassCleanup(cls.cluster.kill)

    def bench(self, *flags, key="sesame"):
        with tempfile.NamedTemporaryFile(suffix=".json") as report:
            done = subprocess.run([binary(), "bench", "--url", self.cluster.url, "--api-key", key, "--json", report.name,
                                   *flags], capture_output=True, text=True, timeout=120)
            text = pathlib.Path(report.name).read_text()
        return done, json.loads(text) if text else None

    def test_completions_at_fixed_concurrency(self):
        done, report = self.bench("--concurrency", "4", "--requests", "12", "--prompt-tokens", "100", "--output-tokens", "20")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((report["requests_answered"], report["requests_failed"]), (12, 0), done.stdout)
        self.assertEqual(report["output_tokens"], 12 * 20)
        self.assertAlmostEqual(report["prompt_tokens"] / 12, 100, delta=15)
        self.assertIn("12 answered, 0 failed", done.stdout)
        self.assertLess(report["to_first_token_seconds"]["p50"], report["whole_request_seconds"]["p50"])

    def test_chat_with_poisson_arrivals(self):
        done, report = self.bench("--endpoint", "chat", "--rate", "20", "--requests", "10", "--prompt-tokens",
                                  "uniform:30,60", "--output-tokens", "uniform:5,10")
        self.assertEqual(report["requests_failed"], 0, done.stdout + done.stderr)
        self.assertTrue(50 <= report["output_tokens"] <= 100)

    def test_drawn_tokens(self):
        done, report = self.bench("--requests", "4", "--prompt-tokens", "20", "--output-tokens", "8", "--temperature", "0.8")
        self.assertEqual((report["requests_answered"], report["load"]["temperature"]), (4, 0.8), done.stdout + done.stderr)
        done, _ = self.bench("--temperature", "2.5")
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_for_a_duration(self):
        done, report = self.bench("--duration", "2", "--concurrency", "2", "--output-tokens", "8")
        self.assertEqual(report["requests_failed"], 0, done.stdout + done.stderr)
        self.assertGreaterEqual(report["duration_seconds"], 1.5)
        self.assertGreater(report["requests_answered"], 2)

    def test_replays_a_trace_with_its_prefixes(self):
        # As slowly as that: the last request comes four seconds after the first, which it finds computed.
        flags = ["--trace", TRACES / "mooncake.jsonl", "--trace-speed", "0.25", "--trace-tokens", "0.25"]
        done, first = self.bench(*flags)
        self.assertEqual((first["requests_answered"], first["requests_failed"]), (5, 0), done.stdout + done.stderr)
        self.assertEqual(first["prompt_tokens"], 2 * 325 + 256 + 425 + 129)
        self.assertEqual(first["output_tokens"], 2 * 16 + 8 + 1 + 125)
        self.assertGreaterEqual(first["duration_seconds"], 4)
        self.assertGreater(first["cached_tokens"], 0, "the last request repeats the first")
        done, second = self.bench(*flags)
        self.assertGreater(second["hit_rate"], 0.8, done.stdout)
        self.assertGreater(second["hit_rate"], first["hit_rate"])

    def test_replays_a_table_of_lengths(self):
        done, report = self.bench("--trace", TRACES / "azure.csv", "--trace-skip", "1", "--trace-speed", "4")
        self.assertEqual((report["requests_answered"], report["prompt_tokens"], report["output_tokens"]), (2, 96 + 374, 9),
                         done.stdout + done.stderr)
        self.assertEqual(report["load"]["trace"]["skip"], 1)

    def test_a_bad_trace_is_told_by_file_and_line(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as trace:
            trace.write('{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [0]}\n{"timestamp": "soon"}\n')
            trace.flush()
            done, _ = self.bench("--trace", trace.name)
            self.assertEqual(done.returncode, 3)
            self.assertIn(f"{trace.name}:2: expected 'timestamp'", done.stderr)

    def test_the_wrong_key_ends_it(self):
        done, _ = self.bench(key="wrong")
        self.assertEqual(done.returncode, 4)
        self.assertIn("401", done.stderr)


if __name__ == "__main__":
    unittest.main()
