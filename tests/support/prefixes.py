"""Prompts that are computed, stored, pushed out of the workers' memory and asked for again: what tests of prefixes that
come back share. Tokens are of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time."""

import time

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
    wait_until(lambda: stored(cluster) >= pages, "pages in the store")


def restored(cluster, seed, max_tokens, begin=lambda: None, **more):
    """(answer, what counters grew by) of a prompt that was pushed out, and, after begin(), comes back from the store. A
    sequence waits for a store no longer than seconds, and computes what looks quicker so: where a busy machine made it, once
    more."""
    def come_back():
        push_out(cluster)
        begin()
        grown = Growth(cluster)
        answer = complete(cluster, seed, max_tokens, **more)
        grown.read()
        whole = grown("lowkey_prompt_tokens_total", source="host") >= PROMPT_TOKENS - PAGE_TOKENS
        return (answer, grown) if whole else None
    return wait_until(come_back, f"prompt {seed} from the store")


def push_out(cluster):
    for seed in OTHERS:
        complete(cluster, seed, max_tokens=2)


class Growth:
    """What counters of these roles, of every role without any, grew by since it was made, and the seconds that it took."""

    def __init__(self, cluster, *roles):
        self.cluster, self.roles, self.before, self.after = cluster, roles, cluster.all_metrics(*roles), None
        self.begin, self.seconds = time.monotonic(), None

    def read(self):
        self.seconds = time.monotonic() - self.begin
        self.after = self.cluster.all_metrics(*self.roles)
        return self

    def __call__(self, name, **labels):
        return total(self.after, name, **labels) - total(self.before, name, **labels)
