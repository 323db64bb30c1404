"""The real Prometheus with our configuration, scraping a live cluster under load: every panel of the dashboard has
data, every declared metric is fed, promtool accepts the page."""

import concurrent.futures
import json
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.parse

from catalog import catalog
from support.cluster import PATIENCE, ROOT, Cluster, die_with_parent, free_port, http, skip, sse, wait_until

DASHBOARD = json.loads((ROOT / "monitoring" / "grafana" / "lowkey.json").read_text())
OF_DEVICES = {"lowkey_step_graphs", "lowkey_step_graph_bytes"}  # of workers that record steps: not of these, on the CPU
WORDS = (ROOT / "README.md").read_text().split() if (ROOT / "README.md").exists() else ["word"] * 500


class Prometheus:
    """Prometheus with deploy/observe/prometheus.yml, pointed at `cluster` and scraping every second."""

    def __init__(self, cluster):
        self._folder = tempfile.TemporaryDirectory(prefix="lowkey-prometheus-")
        folder = pathlib.Path(self._folder.name)
        config = (ROOT / "deploy" / "observe" / "prometheus.yml").read_text()
        for old, new in (("127.0.0.1:8000", f"127.0.0.1:{cluster.port}"), ("_interval: 5s", "_interval: 1s"),
                         ("../../monitoring", str(ROOT / "monitoring"))):
            assert old in config, old
            config = config.replace(old, new)
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = open(folder / "log", "wb")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.url[len('http://'):]}"], stdout=self._log, stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent)

    def get(self, path, **parameters):
        try:
            status, answer = http(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=20)
        except OSError:
            return None
        if status == 503:  # still starting
            return None
        assert status == 200, f"{path} {parameters}: {status} {answer}"
        return answer["data"]

    def query(self, expression):
        data = self.get("query", query=expression)
        return data["result"] if data else []

    def close(self):
        self._process.kill()  # nobody reads its data again
        self._process.wait(PATIENCE)
        self._log.close()
        self._folder.cleanup()


def fill(expression):
    """The dashboard's variables at their defaults."""
    return expression.replace("$__rate_interval", "20s").replace("$instance", ".*").replace("$rank", ".*")


def ask(cluster, seed):
    """One streamed chat, one completion, one answer in JSON, and one request that is refused."""
    words = random.Random(seed)
    prompt = " ".join(words.choice(WORDS) for _ in range(250))
    body = {"model": cluster.model.name, "prompt": prompt, "max_tokens": 24, "ignore_eos": True}
    assert http(cluster.url + "/v1/completions", body)[0] == 200
    assert http(cluster.url + "/v1/completions", {**body, "max_tokens": 8, "response_format": {"type": "json_object"}})[0] == 200
    chat = {"model": cluster.model.name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16,
            "stream": True}
    assert list(sse(cluster.url + "/v1/chat/completions", chat))
    assert http(cluster.url + "/v1/completions", {**body, "model": "nobody"})[0] == 404


class Load:
    """Requests that never stop, in a few threads. Prompts come around again after more of them than the device tier
    holds, so that pages are spilled, evicted and restored."""

    def __init__(self, cluster, threads=4):
        self._stopped = False
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.done = [self._pool.submit(self._run, cluster, i) for i in range(threads)]

    def _run(self, cluster, thread):
        seed = thread
        while not self._stopped:
            ask(cluster, seed % 12)
            seed += 4

    def check(self):
        for future in self.done:
            if future.done():
                future.result()

    def stop(self):
        self._stopped = True
        self._pool.shutdown()
        self.check()


class Observe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("prometheus") or not shutil.which("promtool"):
            skip("prometheus and promtool (package prometheus) are absent")
        disk = tempfile.TemporaryDirectory(prefix="lowkey-disk-")
        cls.addClassCleanup(disk.cleanup)
        # Weights in few bits, since what that costs is a metric.
        cls.cluster = Cluster(flags=["--kv-bytes", "6MiB", "--host-bytes", "64MiB", "--disk", disk.name, "--disk-bytes",
                                     "64MiB", "--weights", "int8"]).start()
        cls.addClassCleanup(cls.cluster.kill)
        cls.prometheus = Prometheus(cls.cluster)
        cls.addClassCleanup(cls.prometheus.close)
        cls.load = Load(cls.cluster)
        cls.addClassCleanup(cls.load.stop)

    def test_target_is_up_and_has_no_scrape_error(self):
        def up():
            data = self.prometheus.get("targets", state="active")
            targets = data["activeTargets"] if data else []
            return targets and all(t["health"] == "up" for t in targets)
        wait_until(up, "the target is up")

    def test_every_panel_returns_data(self):
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                if any(name in target["expr"] for name in OF_DEVICES):
                    continue
                with self.subTest(panel["title"], query=target["expr"]):
                    expression = fill(target["expr"])

                    def has_data():
                        self.load.check()
                        return self.prometheus.query(expression)
                    wait_until(has_data, expression)

    def test_quantiles_of_latencies_are_numbers(self):
        for metric in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "step", "kv_restore"):
            expression = f"histogram_quantile(0.9, sum by (le) (rate(lowkey_{metric}_seconds_bucket[20s])))"
            wait_until(lambda: [s for s in self.prometheus.query(expression) if s["value"][1] != "NaN"], expression)

    def test_variables_of_the_dashboard_have_values(self):
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                series = wait_until(lambda: self.prometheus.query(fill(match[1])), variable["name"])
                self.assertTrue(all(match[2] in s["metric"] for s in series))

    def test_every_declared_metric_is_fed_and_labels_are_the_catalogs(self):
        def missing():
            text = self.cluster.metrics()
            return {m.name for m in catalog()} - OF_DEVICES - set(re.findall(r"^# TYPE (\w+)", text, re.M))
        try:
            wait_until(lambda: not missing(), "all metrics on the page")
        except TimeoutError:
            self.fail(f"declared but not fed: {sorted(missing())}")
        told = [name for name in OF_DEVICES if f"# TYPE {name} " in self.cluster.metrics()]
        self.assertEqual(told, [], "a host that records no steps says how many it keeps")
        stray = [line for line in self.cluster.metrics().splitlines() if '="other"' in line]
        self.assertEqual(stray, [], "label values that the catalog does not list")

    def test_rules_are_loaded_and_healthy(self):
        def rules():
            data = self.prometheus.get("rules")
            found = [rule for group in data["groups"] for rule in group["rules"]] if data else []
            return found if found and all(rule["health"] == "ok" for rule in found) else None
        names = {rule["name"] for rule in wait_until(rules, "rules evaluated")}
        self.assertIn("LowkeyRankDown", names)

    def test_promtool_accepts_the_page(self):
        done = subprocess.run(["promtool", "check", "metrics"], input=self.cluster.metrics(), capture_output=True,
                              text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stderr.strip(), "")

    def test_all_ranks_report(self):
        def ranks():  # a store may connect after the replica is ready
            return set(re.findall(r'lowkey_process_cpu_seconds_total\{[^}]*rank="(\d+)"', self.cluster.metrics()))
        wait_until(lambda: ranks() == {"0", "1", "2", "3"}, "four ranks on the page")


if __name__ == "__main__":
    unittest.main()
