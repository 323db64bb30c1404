"""Whatever the schema and however random the draws: an answer that was not cut is JSON that the schema allows, as the
package jsonschema sees it."""

import json
import os
import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
from cluster import Cluster, http, skip  # noqa: E402
from random_schema import describe, random_schema  # noqa: E402

try:
    import jsonschema
except ImportError:
    skip("the Python package jsonschema is not installed")

Validator = jsonschema.Draft202012Validator
ROUNDS = int(os.environ.get("LOWKEY_SCHEMAS", "40"))


class JsonSchema(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=1).start()
        cls.addClassCleanup(cls.cluster.kill)

    def ask(self, schema, seed, **fields):
        return http(self.cluster.url + "/v1/completions", {
            "prompt": "Once upon a time", "max_tokens": 400, "temperature": 1, "top_p": 1, "seed": seed, "n": 3,
            "response_format": {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}, **fields})

    def test_random_schemas(self):
        complete = 0
        for round_ in range(ROUNDS):
            schema = random_schema(random.Random(round_))
            status, answer = self.ask(schema, round_)
            if status == 400:  # bounds that leave nothing, alternatives that are not told apart
                self.assertRegex(answer["error"]["message"], "no value|'oneOf'|twice|not supported", describe(schema))
                continue
            self.assertEqual(status, 200, f"{answer} for {describe(schema)}")
            for choice in answer["choices"]:
                if choice["finish_reason"] == "length":
                    continue
                complete += 1
                value = json.loads(choice["text"])
                Validator(schema, format_checker=Validator.FORMAT_CHECKER).validate(value)
        self.assertGreater(complete, ROUNDS)

    def test_a_stream_and_another_order_of_the_batch_change_nothing(self):
        schema = {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 3, "maxItems": 3}
        first = self.ask(schema, 5)[1]["choices"]
        self.ask({"type": "object"}, 6, max_tokens=30)
        self.assertEqual(first, self.ask(schema, 5)[1]["choices"])
        self.assertEqual(first[1]["text"], self.ask(schema, 6, n=1)[1]["choices"][0]["text"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
