"""Dashboard, alert rules and Prometheus' configuration, without a cluster: complete, valid, naming only what exists."""

import importlib.util
import json
import re
import shutil
import subprocess
import unittest

from catalog import DOC, catalog, document, series_names
from support.cluster import PATIENCE, ROOT

DASHBOARD = ROOT / "monitoring" / "grafana" / "lowkey.json"
ALERTS = ROOT / "monitoring" / "alerts" / "lowkey.yaml"


def metric_names(text):
    return set(re.findall(r"\blowkey_\w+", text))


def unknown_labels(query):
    """Labels, and values of labels, that the query's metrics do not have."""
    metrics = {m.name: m for m in catalog()}
    everywhere = {"instance", "job", "role", "rank", "le"}
    found, known = [], set(everywhere)
    for name in metric_names(query):
        known |= set(metrics[re.sub(r"_(bucket|sum|count)$", "", name)].labels)
    for name, selector in re.findall(r"\b(lowkey_\w+)\{([^}]*)\}", query):
        labels = metrics[re.sub(r"_(bucket|sum|count)$", "", name)].labels
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
            if label in everywhere:
                continue
            values = labels.get(label, ["none"])
            matches = [v for v in values if (re.fullmatch(value, v) if "~" in operator else value == v)]
            if label not in labels or (values and not matches):
                found.append(f"{name}{{{label}{operator}{value}}}")
    for listed in re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", query):
        found += [label for label in listed.replace(" ", "").split(",") if label not in known]
    return found


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.dashboard = json.loads(DASHBOARD.read_text())
        self.panels = [p for p in self.dashboard["panels"] if p["type"] != "row"]

    def test_is_what_the_script_writes(self):
        spec = importlib.util.spec_from_file_location("make_dashboard", DASHBOARD.parent / "make_dashboard.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        self.assertEqual(DASHBOARD.read_text(), script.text(), "run monitoring/grafana/make_dashboard.py")

    def test_every_panel_has_unit_description_and_queries(self):
        self.assertGreater(len(self.panels), 30)
        for panel in self.panels:
            with self.subTest(panel["title"]):
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                self.assertGreater(len(panel["description"]), 10)
                self.assertTrue(panel["targets"])

    def test_panels_lie_on_the_grid_without_overlap(self):
        taken = {}
        for panel in self.dashboard["panels"]:
            box = panel["gridPos"]
            self.assertLessEqual(box["x"] + box["w"], 24, panel["title"])
            for x in range(box["x"], box["x"] + box["w"]):
                for y in range(box["y"], box["y"] + box["h"]):
                    self.assertNotIn((x, y), taken, f"{panel['title']} over {taken.get((x, y))}")
                    taken[x, y] = panel["title"]

    def test_names_only_metrics_of_the_catalog_and_shows_all_of_them(self):
        used = set()
        for panel in self.panels:
            for target in panel["targets"]:
                used |= metric_names(target["expr"])
        self.assertLessEqual(used, series_names())
        stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
        self.assertEqual({m.name for m in catalog()} - stems - used, set(), "metrics that no panel shows")

    def test_names_only_labels_and_values_of_the_catalog(self):
        for panel in self.panels:
            for target in panel["targets"]:
                self.assertEqual(unknown_labels(target["expr"]), [], panel["title"])
        self.assertEqual(unknown_labels('sum by (kind) (rate(lowkey_kv_bytes{tier="moon", state=~"u.*"}[5m]))'),
                         ["lowkey_kv_bytes{tier=moon}", "kind"])


class Documentation(unittest.TestCase):
    def test_is_what_the_catalog_says(self):
        self.assertEqual(DOC.read_text(), document(), "run monitoring/catalog.py")


class Alerts(unittest.TestCase):
    def test_name_only_metrics_of_the_catalog(self):
        self.assertLessEqual(metric_names(ALERTS.read_text()), series_names())

    def test_name_only_labels_and_values_of_the_catalog(self):
        for block in ALERTS.read_text().split("- alert: ")[1:]:
            name, expr = re.match(r"(\w+)\s+expr: (.*?)\n +(?:for|labels):", block, re.S).groups()
            self.assertEqual(unknown_labels(expr), [], name)

    @unittest.skipUnless(shutil.which("promtool"), "promtool (package prometheus) is absent")
    def test_promtool_accepts_configuration_and_rules_and_each_alert_fires(self):
        for arguments in (["check", "config", ROOT / "deploy" / "observe" / "prometheus.yml"],
                          ["check", "rules", ALERTS],
                          ["test", "rules", ROOT / "tests" / "integration" / "observe" / "alerts_test.yaml"]):
            done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Compose(unittest.TestCase):
    def test_mounts_and_files_exist(self):
        folder = ROOT / "deploy" / "observe"
        text = (folder / "compose.yaml").read_text()
        sources = [s for s in re.findall(r"^\s+- (\.[^:]*):", text, re.M)]
        self.assertEqual(len(sources), 3)
        for source in sources:
            self.assertTrue((folder / source).exists(), source)
        self.assertTrue(all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image)
                            for image in re.findall(r"image: (\S+)", text)), "images are pinned")


if __name__ == "__main__":
    unittest.main()
