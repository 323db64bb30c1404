"""The offline oracle against an exhaustive search, and against counting by hand."""

import functools
import itertools
import json
import random
import unittest

from bench.oracle import BLOCK_TOKENS, Chain, best, lru, read_trace
from support.cluster import ROOT

TRACE = ROOT / "tests" / "golden" / "trace" / "mooncake.jsonl"
PUBLISHED = ROOT.parent / "shared" / "data" / "traces" / "mooncake-fast25" / "conversation_trace.jsonl"


def exhaustive(chains, capacity):
    """The most pages that can be found, over all choices of what to keep after every request."""
    @functools.lru_cache(maxsize=None)
    def most(number, kept):
        if number == len(chains):
            return 0
        pages = chains[number].pages
        found = sum(1 for _ in itertools.takewhile(kept.__contains__, pages))
        there = sorted(kept | set(pages))
        choices = itertools.combinations(there, min(capacity, len(there)))
        return found + max(most(number + 1, frozenset(choice)) for choice in choices)
    return most(0, frozenset())


def random_chains(rng):
    """Prompts of a few one-token pages; a page is named by its whole prefix, so that chains form a tree."""
    chains = []
    for _ in range(rng.randint(2, 6)):
        tokens = [rng.choice("ab") for _ in range(rng.randint(1, 4))]
        pages = ["".join(tokens[:i + 1]) for i in range(len(tokens))]
        chains.append(Chain(pages, len(pages) + 1, []))
    return chains


class Oracle(unittest.TestCase):
    def test_perfect_knowledge_is_the_best_of_all_choices(self):
        rng = random.Random(5)
        for _ in range(150):
            chains, capacity = random_chains(rng), rng.randint(1, 4)
            tokens = sum(chain.tokens for chain in chains)
            self.assertAlmostEqual(best(chains, capacity, 1) * tokens, exhaustive(chains, capacity), msg=f"{chains} {capacity}")
            self.assertLessEqual(lru(chains, capacity, 1), best(chains, capacity, 1) + 1e-12)

    def test_lru_gives_up_the_oldest_and_the_deepest(self):
        def ask(*words):
            return [Chain([w[:i + 1] for i in range(len(w))], len(w) + 1, []) for w in words]
        self.assertEqual(lru(ask("abc", "xy", "abc"), 3, 1) * 11, 1)  # x, y and a are left
        self.assertEqual(lru(ask("abc", "abc"), 3, 1) * 8, 3)
        self.assertEqual(best(ask("abc", "xy", "abc"), 3, 1) * 11, 3)

    def test_a_trace_becomes_chains_of_pages(self):
        chains = read_trace(TRACE, tokens=0.25, page_tokens=32)
        self.assertEqual([c.tokens for c in chains], [325, 256, 425, 129, 325])
        self.assertEqual([len(c.pages) for c in chains], [10, 7, 13, 4, 10])
        self.assertEqual(chains[0].pages[:7], chains[1].pages)
        self.assertEqual(chains[0].pages[:8], chains[2].pages[:8])
        self.assertNotEqual(chains[0].pages[8], chains[2].pages[8])
        self.assertEqual(len(chains[3].answer_pages), (129 + 125) // 32 - 4)
        # found: all pages of the second, 8 of the third, all 10 of the last
        self.assertAlmostEqual(best(chains, 1000) * sum(c.tokens for c in chains), 32 * (7 + 8 + 10))
        self.assertAlmostEqual(lru(chains, 1000), best(chains, 1000))
        wide = read_trace(TRACE, tokens=1 / 64, page_tokens=32)  # four blocks a page
        self.assertEqual([len(c.pages) for c in wide], [0, 0, 0, 0, 0])
        with self.assertRaises(ValueError):
            read_trace(TRACE, tokens=0.3, page_tokens=32)

    def test_reusable_share_of_the_published_trace(self):
        if not PUBLISHED.exists():
            self.skipTest(f"{PUBLISHED} is absent")
        chains = read_trace(PUBLISHED, page_tokens=BLOCK_TOKENS)
        with open(PUBLISHED) as lines:
            blocks = sum(len(json.loads(line)["hash_ids"]) for line in lines)
        found = best(chains, 10**9, BLOCK_TOKENS) * sum(c.tokens for c in chains) / BLOCK_TOKENS
        self.assertLess(abs(found / blocks - 0.366), 0.01)  # 36.6 %, but for a prompt's last, partial block
        small, large = (best(chains, n, BLOCK_TOKENS) for n in (2000, 20000))
        self.assertLess(small, large)
        self.assertLess(lru(chains, 2000, BLOCK_TOKENS), small)


if __name__ == "__main__":
    unittest.main()
