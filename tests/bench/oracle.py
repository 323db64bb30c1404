#!/usr/bin/env python3
"""Hit rate that a prefix cache could have had on a Mooncake trace, with perfect knowledge and with LRU.

usage: tests/bench/oracle.py TRACE --pages N [--page-tokens 32] [--tokens X] [--skip N] [--requests N]

One cache for the whole cluster. A request finds the leading pages of its prompt that are there; the last token of a
prompt is always computed. Lengths and blocks scale as in `lowkey bench --trace-tokens`.

*Perfect knowledge* keeps the pages that are used again soonest (Belady, 1966, with the choice not to keep a page at
all). That a page is useful only behind its prefix changes nothing: whoever uses a page uses its ancestors, so these are
used again no later; ties go to the page nearer to the start, and what is kept always contains its ancestors. So it is
the best that any policy can do, also with the prefix rule. It keeps nothing for the answers, which come back in no
prompt of these traces.
*LRU* keeps the pages used last, those near the start longest, and takes up the pages of answers as well.
"""

import argparse
import collections
import heapq
import json
import math
import sys

BLOCK_TOKENS = 512  # of a hash id
NEVER = float("inf")

# page keys of all its complete pages that could be found; tokens of its prompt; complete pages of its answer
Chain = collections.namedtuple("Chain", "pages tokens answer_pages")


def read_trace(path, tokens=1.0, page_tokens=32, skip=0, requests=0):
    """The page chains of a trace, in the order of arrival."""
    block = math.floor(BLOCK_TOKENS * tokens + 0.5)
    if block % page_tokens and page_tokens % block:
        raise ValueError(f"{block} tokens a block and {page_tokens} a page: expected one to be a multiple of the other")
    chains = []
    with open(path) as lines:
        for number, line in enumerate(lines):
            if number < skip:
                continue
            if requests and len(chains) == requests:
                break
            chains.append(_chain(json.loads(line), block, page_tokens, number))
    return chains


def _chain(request, block, page_tokens, number):
    ids = request["hash_ids"]
    scaled = lambda n: max(1, math.floor(n * block / BLOCK_TOKENS + 0.5))  # noqa: E731
    length = (len(ids) - 1) * block + scaled(request["input_length"] - (len(ids) - 1) * BLOCK_TOKENS)
    pages, identity = [], ()
    for page in range((length - 1) // page_tokens):  # at least one token is computed
        first, end = page * page_tokens // block, ((page + 1) * page_tokens - 1) // block + 1
        identity = hash((identity, tuple(ids[first:end]), page))
        pages.append(identity)
    whole = (length + scaled(request["output_length"])) // page_tokens
    return Chain(pages, length, [(number, page) for page in range(len(pages), whole)])


def share(chains, found_pages, page_tokens):
    return found_pages * page_tokens / sum(chain.tokens for chain in chains)


def best(chains, capacity, page_tokens=32):
    """Share of prompt tokens found with perfect knowledge of what comes, in a cache of `capacity` pages."""
    uses = collections.defaultdict(collections.deque)
    for number, chain in enumerate(chains):
        for page in chain.pages:
            uses[page].append(number)
    kept, heap, found = {}, [], 0  # page -> (next use, depth); the one to go first on top, out-of-date entries skipped
    for chain in chains:
        found += sum(page in kept for page in chain.pages)
        for depth, page in enumerate(chain.pages):
            uses[page].popleft()
            following = uses[page][0] if uses[page] else NEVER
            if following == NEVER:
                kept.pop(page, None)
                continue
            kept[page] = (following, depth)
            heapq.heappush(heap, (-following, -depth, page))
        while len(kept) > capacity:
            following, depth, page = heapq.heappop(heap)
            if kept.get(page) == (-following, -depth):
                del kept[page]
    return share(chains, found, page_tokens)


def lru(chains, capacity, page_tokens=32):
    """The same for a cache that gives up the page that was not used for longest."""
    kept, found = collections.OrderedDict(), 0
    for chain in chains:
        for page in chain.pages:
            if page not in kept:
                break
            found += 1
        for page in reversed(chain.pages + chain.answer_pages):  # the first page is touched last: it goes last
            kept[page] = None
            kept.move_to_end(page)
        while len(kept) > capacity:
            kept.popitem(last=False)
    return share(chains, found, page_tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="Mooncake trace (jsonl)")
    parser.add_argument("--pages", type=int, required=True, help="that the cluster's caches hold together")
    parser.add_argument("--page-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=float, default=1.0, help="scale of lengths")
    parser.add_argument("--skip", type=int, default=0, help="requests at the start")
    parser.add_argument("--requests", type=int, default=0, help="after those; 0: all")
    a = parser.parse_args()
    try:
        chains = read_trace(a.trace, a.tokens, a.page_tokens, a.skip, a.requests)
    except (OSError, ValueError, KeyError) as error:
        print(f"oracle: {a.trace}: {error}", file=sys.stderr)
        return 3
    print(json.dumps({"requests": len(chains), "prompt_tokens": sum(c.tokens for c in chains),
                      "pages": len({page for c in chains for page in c.pages}),
                      "best": best(chains, a.pages, a.page_tokens), "lru": lru(chains, a.pages, a.page_tokens),
                      "unlimited": best(chains, sys.maxsize, a.page_tokens)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
