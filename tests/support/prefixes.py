"""Prompts that are computed, stored, pushed out of the workers' memory and asked for again: what tests of prefixes that
come back share. Tokens are of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time."""

from support.cluster import http, wait_until
from support.series import total

PROMPT_TOKENS = 640
PAGE_TOKENS = 32
PAGES = PROMPT_TOKENS // PAGE_TOKENS
OTHERS = range(2, 18)  # seeds of as many prompts as push any other one out of a few MiB


def complete(cluster, seed, max_tokens, **more):
    prompt = [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logprobs": 1, **more})
    assert status == 200, answer
    return answer


def said(answer):
    return answer["choices"][0]["logprobs"]["tokens"], answer["choices"][0]["logprobs"]["token_logprobs"]


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def stored(cluster):
    return total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored")


def wait_stored(cluster, pages):
    """Until so many pages, of all ranks, have come to a store."""
    wait_until(lambda: stored(cluster) >= pages, 20, "pages in the store")


def push_out(cluster):
    for seed in OTHERS:
        complete(cluster, seed, max_tokens=2)


class Growth:
    """What counters grew by since it was made."""

    def __init__(self, cluster):
        self.cluster, self.before, self.after = cluster, cluster.metrics(), None

    def read(self):
        self.after = self.cluster.metrics()
        return self

    def __call__(self, name, **labels):
        return total(self.after, name, **labels) - total(self.before, name, **labels)
