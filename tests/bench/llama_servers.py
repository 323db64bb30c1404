"""llama.cpp's server and the clients that both servers get: closed loops over HTTP, token ids as prompts."""

import contextlib
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench.report import median  # noqa: E402
from support.cluster import free_port, sse, wait_until  # noqa: E402


@contextlib.contextmanager
def llama_server(folder, file, threads, slots, context, *flags):
    """Its URL. `context`: tokens of each slot. What does not fit the slots is forgotten: no prompts kept elsewhere."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([folder / "llama-server", "-m", file, "-t", str(threads), "-np", str(slots), "-c",
                                   str(slots * context), "-fa", "on", "--cache-ram", "0", "--host", "127.0.0.1", "--port",
                                   str(port), "--no-webui", *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            def ready():
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read()[-2000:].decode(errors="replace"))
                with contextlib.suppress(OSError):
                    return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
            wait_until(ready, "llama-server is ready")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait(30)


RULES = {"top_p": 0.95, "top_k": 40, "min_p": 0.05}  # llama.cpp's own defaults


def random_tokens(count, seed):
    numbers = random.Random(seed)
    return [numbers.randrange(300, 40000) for _ in range(count)]


class Load:
    """`users` clients in closed loops, every token seen as it comes. `prompt(user, number)`: token ids of a user's
    number-th request; None: it has no more. Ends after `seconds`, whoever still waits: what has not ended then does not count.
    `temperature` 0: the likeliest tokens; else they are drawn, by the same rules in both servers, whose own differ."""

    def __init__(self, url, model, users, prompt, answer_tokens, seconds=900, temperature=0):
        self.gaps, self.firsts, self.tokens, self.cached, self.answered, self.failed = [], [], 0, 0, 0, 0
        self._url, self._model, self._prompt, self._answer = url, model, prompt, answer_tokens
        self._sampling = {"temperature": temperature, **(RULES if temperature > 0 else {})}
        self._lock, self._closed = threading.Lock(), False
        self.seconds = None
        self._begin = time.monotonic()
        threads = [threading.Thread(target=self._user, args=(user,), daemon=True) for user in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, self._begin + seconds - time.monotonic()))
        with self._lock:
            self._closed = True

    def _user(self, user):
        number = 0
        while not self._closed and (prompt := self._prompt(user, number)) is not None:
            self._ask(prompt)
            number += 1

    def _ask(self, prompt):
        body = {"model": self._model, "prompt": prompt, "max_tokens": self._answer, "ignore_eos": True, **self._sampling,
                "stream": True, "stream_options": {"include_usage": True}}
        begin, times, usage = time.monotonic(), [], {}
        try:
            for event in sse(self._url + "/v1/completions", body, timeout=900):
                usage = event.get("usage") or usage
                if event.get("choices"):
                    times.append(time.monotonic())
        except (OSError, EOFError):
            pass
        with self._lock:
            if self._closed:
                return
            self.answered += 1
            self.failed += usage.get("completion_tokens") != self._answer
            self.tokens += usage.get("completion_tokens", 0)
            self.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            self.firsts += [t - begin for t in times[:1]]
            self.gaps += [b - a for a, b in zip(times, times[1:])]
            self.seconds = time.monotonic() - self._begin

    def report(self):
        gaps = sorted(self.gaps)
        return {"tokens_per_second": self.tokens / self.seconds if self.seconds else None, "answered": self.answered,
                "failed": self.failed, "cached_tokens": self.cached, "first_token": median(self.firsts),
                "between_p50": gaps[len(gaps) // 2] if gaps else None,
                "between_p99": gaps[len(gaps) * 99 // 100] if gaps else None}
