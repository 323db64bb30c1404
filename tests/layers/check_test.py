#!/usr/bin/env python3
"""Shows that check.py finds each kind of violation, with its line, and is silent about a clean tree."""
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

CLEAN = {
    "base/log.h": "#pragma once\n",
    "monitoring/catalog.h": '#define METRICS(X) \\\n  X(kSteps, "lowkey_steps_total")\n',
    "kernels/ops.cc": '#include <vector>\n#include "base/log.h"\n',
    "worker/engine/engine.cc": '#include "kernels/ops.h"\n\nvoid feed() { add(Metric::kSteps); }\n',
    "worker/engine/CMakeLists.txt": "lowkey_library(DEPS lowkey_kernels PRIVATE_DEPS lowkey_transport_wire)\n",
    "cli/main.cc": '#include "worker/engine/engine.h"\n#include "coordinator/api/api.h"\n',
    "tests/unit/engine_test.cc": '#include "coordinator/api/api.h"\n#include "tests/support/x.h"\n',
}


def violations(waivers=(), files=None):
    """Of the clean tree with these files added or replaced."""
    with tempfile.TemporaryDirectory() as root:
        for path, text in {**CLEAN, **(files or {})}.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                f.write(text)
        return check.Checker(root, set(waivers)).run()


class CheckTest(unittest.TestCase):
    def expect(self, files, start, part, waivers=()):
        found = violations(waivers, files=files)
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(start + ": "), found[0])
        self.assertIn(part, found[0])

    def test_a_clean_tree_has_no_violations(self):
        self.assertEqual(violations(), [])

    def test_an_include_upwards(self):
        self.expect({"kernels/bad.cc": '// first\n#include "kvstore/page/page.h"\n'}, "kernels/bad.cc:2", "downwards")

    def test_siblings_do_not_know_each_other(self):
        self.expect({"worker/bad.h": '#include "coordinator/api/api.h"\n'}, "worker/bad.h:1", "downwards")
        self.expect({"coordinator/bad.h": '#  include "worker/engine/engine.h"\n'}, "coordinator/bad.h:1", "downwards")

    def test_an_include_that_is_not_from_the_root(self):
        self.expect({"kernels/bad.cc": '#include "ops.h"\n'}, "kernels/bad.cc:1", "full path")

    def test_product_code_includes_no_tests(self):
        self.expect({"cli/bad.cc": '#include "tests/support/x.h"\n'}, "cli/bad.cc:1", "product code")

    def test_folders_in_a_cycle(self):
        files = {"worker/model/a.h": '#include "worker/engine/engine.h"\n',
                 "worker/engine/b.h": '#include "worker/model/a.h"\n'}
        found = violations(files=files)
        self.assertEqual(len(found), 1, found)
        self.assertIn("worker/engine -> worker/model -> worker/engine", found[0])

    def test_a_link_upwards(self):
        self.expect({"transport/CMakeLists.txt": "# lowkey_kvstore\nlowkey_library(\n  DEPS lowkey_kvstore_service)\n"},
                    "transport/CMakeLists.txt:3", "links go downwards only")

    def test_a_long_file(self):
        long = {"kernels/long.h": "\n" * 501}
        self.expect(long, "kernels/long.h:501", "501 lines")
        self.assertEqual(violations(["kernels/long.h"], files=long), [])

    def test_a_long_function(self):
        body = "  call();\n" * 69
        for head in ["int Type::name(int a,\n              int b) {\n", "TEST(Type, name) {\n",
                     "Type::name(int a)\n    : a_(a) {\n"]:
            files = {"kernels/long.cc": "namespace x {\n\n" + head + body + "}\n\n}  // namespace x\n"}
            self.expect(files, "kernels/long.cc:3", "lines, at most 70")
        self.assertEqual(violations(files={"kernels/ok.cc": "void name() {\n" + "  call();\n" * 68 + "}\n"}), [])
        self.assertEqual(violations(files={"kernels/long.cu": "void name() {\n" + body + "}\n"}), [])
        inside = {"kernels/long.h": "class T {\n  int name() const {\n" + body + "  }\n};\n"}
        self.expect(inside, "kernels/long.h:2", "name() has 71 lines")
        self.assertEqual(violations(["kernels/long.h:name"], files=inside), [])

    def test_words(self):
        self.expect({"docs/a.md": "one\nTO" + "DO: two\n"}, "docs/a.md:2", "leftover")
        self.expect({"deploy/run": "cd /ho" + "me/somebody\n"}, "deploy/run:1", "path of one machine")

    def test_a_metric_that_is_never_fed(self):
        self.expect({"worker/engine/engine.cc": ""}, "monitoring/catalog.h:2", "kSteps is declared and never fed")

    def test_a_waiver_that_nothing_needs(self):
        found = violations(["kernels/ops.cc:add"])
        self.assertEqual(len(found), 1)
        self.assertIn("nothing needs the waiver", found[0])


if __name__ == "__main__":
    unittest.main()
