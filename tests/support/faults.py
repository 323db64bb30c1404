"""What goes wrong, done to real processes, and a load that notices every consequence.

A store that lies is made by writing into its memory, or its segment files, from outside: nothing in the product
helps with that."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException

from support.cluster import DEMO_MODEL, PATIENCE


class TooLate(Exception):
    """What a fault should have hit was over before it came."""


def in_time(attempt, tries=5):
    """What attempt() returns; again where it raises TooLate: on a busy machine a test may sleep through its moment."""
    for number in range(1, tries + 1):
        try:
            return attempt()
        except TooLate as late:
            print(f"too late, {number} of {tries}: {late}", flush=True)
            if number == tries:
                raise


def long_demo_model(folder):
    """The demo model with a context of 16 times as many positions: whatever it says, it goes on saying it for many seconds."""
    model = pathlib.Path(folder) / "demo-model"
    model.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.is_file() and file.name != "config.json":
            shutil.copy(file, model)
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "linear", "factor": 16.0}}))
    return model


def prompt(seed, tokens):
    """Tokens of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time."""
    return [4 + (seed * 7919 + i * 104729) % 4000 for i in range(tokens)]


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def stop(pid):
    os.kill(pid, signal.SIGSTOP)


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


class Stutter:
    """A process that runs only now and then: stopped for `off` seconds, running for `on`."""

    def __init__(self, pid, off=0.4, on=0.1):
        self._pid, self._off, self._on = pid, off, on
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._end.is_set():
            stop(self._pid)
            self._end.wait(self._off)
            go_on(self._pid)
            self._end.wait(self._on)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def _regions(pid, least):
    """(begin, end) of the shared mappings of at least so many bytes: a store's pool is the largest of them."""
    found = []
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (rw.s) ", line)
        if match:
            begin, end = int(match[1], 16), int(match[2], 16)
            if end - begin >= least:
                found.append((begin, end))
    return found


def flip_bits_of_pool(pid, pool_bytes, stride=509):
    """Flips one bit in every `stride` bytes that are not zero of a store's pool; returns how many."""
    regions = _regions(pid, pool_bytes)
    if not regions:
        raise RuntimeError(f"process {pid} has no shared mapping of {pool_bytes} bytes")
    flipped = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for begin, end in regions:
            for at in range(begin, end, 1 << 20):
                size = min(1 << 20, end - at)
                memory.seek(at)
                data = bytearray(memory.read(size))
                if not any(data):
                    continue
                for i in range(0, size, stride):
                    if data[i]:
                        data[i] ^= 1 << (i % 8)
                        flipped += 1
                memory.seek(at)
                memory.write(data)
    return flipped


def flip_bits_of_files(folder, stride=509, skip=4096):
    """The same in every file under a store's disk folder, behind its first `skip` bytes."""
    flipped = 0
    for path in pathlib.Path(folder).rglob("*"):
        if not path.is_file():
            continue
        data = bytearray(path.read_bytes())
        for i in range(skip, len(data), stride):
            if data[i]:
                data[i] ^= 1 << (i % 8)
                flipped += 1
        with open(path, "r+b") as file:
            file.write(data)
    return flipped


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` (tmpfs: "6m") in a folder. Gives why there is none, or None."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        yield f"a small disk cannot be mounted here: {done.stderr.strip()}"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


def cut_links(pid, others):
    """Resets every TCP connection between a process and the others (pids), as a network that goes away does, and says
    how many there were; the one to mpirun, without which a rank ends, is not among them. None where the kernel or the
    rights do not allow it."""
    if not shutil.which("ss") or os.geteuid() != 0:
        return None
    lines = subprocess.run(["ss", "-Htnp", "state", "established"], capture_output=True, text=True).stdout.splitlines()

    def ends(pids):
        return [tuple(line.split()[2:4]) for line in lines if any(f"pid={one}," in line for one in pids)]

    theirs = {(remote, local) for local, remote in ends(set(others) - {pid})}
    links = [link for link in ends([pid]) if link in theirs]
    for local, remote in links:
        done = subprocess.run(["ss", "-K", "-Htn", "src", local, "dst", remote], capture_output=True, text=True)
        if "not supported" in done.stderr or "not permitted" in done.stderr:
            return None
    return len(links)


class Answer:
    """What became of one request. `outcome`: "ok", "error" (an error event or a 5xx answer in JSON), "refused" (429,
    503 before anything began), or "broken" (the connection ended without any of these)."""

    def __init__(self, key):
        self.key, self.begin, self.end, self.outcome, self.text, self.detail = key, time.monotonic(), None, None, "", ""

    def close(self, outcome, detail=""):
        self.outcome, self.detail, self.end = outcome, detail, time.monotonic()

    @property
    def seconds(self):
        return (self.end or time.monotonic()) - self.begin


def ask(url, key, body, timeout=PATIENCE, answer=None):
    """One request, streamed or not as `body` says, to its end; a stream's text grows in `answer` meanwhile."""
    answer = answer or Answer(key)
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            if not body.get("stream"):
                answer.text = json.loads(response.read())["choices"][0]["text"]
                answer.close("ok")
                return answer
            for line in response:
                line = line.decode().rstrip("\r\n")
                if line == "data: [DONE]":
                    if answer.outcome is None:
                        answer.close("ok")
                    return answer
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[len("data: "):])
                if "error" in event:
                    answer.close("error", event["error"]["message"])
                elif event.get("choices"):
                    answer.text += event["choices"][0]["text"]
            if answer.outcome is None:
                answer.close("broken", "the stream ended without [DONE]")
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        answer.close("refused" if error.code in (429, 503) else "error", f"{error.code} {text[:200]}")
    except (OSError, ValueError, HTTPException) as error:  # the last: cut inside an event
        answer.close("broken", repr(error))
    return answer


def start(url, bodies):
    """(threads, answers) of a request for each {key: body}, under way."""
    answers = [Answer(key) for key in bodies]
    threads = [threading.Thread(target=ask, args=(url, a.key, bodies[a.key], PATIENCE, a), daemon=True) for a in answers]
    for thread in threads:
        thread.start()
    return threads, answers


def catch(begin, sampled, most):
    """What begin() returns, (threads, answers) of streams, once `sampled()`, tokens by the count of who computes them, has
    grown by a few and by fewer than `most`. A client may be far behind, and a machine may be quick: then once more."""
    for _ in range(20):
        before, deadline = sampled(), time.monotonic() + PATIENCE
        threads, answers = begin()
        while (now := sampled() - before) < 10:
            if time.monotonic() > deadline:
                raise TimeoutError("no streams under way")
        if now < most:
            return threads, answers
        for thread in threads:
            thread.join(PATIENCE)
    raise TimeoutError("the streams end before they can be caught")


class Load:
    """`threads` clients that ask for greedy answers to prompts of `seeds`, one after another, half of them streamed,
    until the `with` body ends; then every answer that was begun is waited for."""

    def __init__(self, url, seeds, threads=6, tokens=160, max_tokens=48, timeout=PATIENCE):
        self.url, self.seeds, self.tokens, self.max_tokens, self.timeout = url, list(seeds), tokens, max_tokens, timeout
        self.answers, self._lock, self._end = [], threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(threads)]

    def body(self, seed, stream):
        # From half to all of max_tokens: answers of one batch must not end together, or a fault could find none begun.
        shorter = self.max_tokens * self.seeds.index(seed) // (2 * len(self.seeds))
        return {"model": "demo-model", "prompt": prompt(seed, self.tokens), "max_tokens": self.max_tokens - shorter,
                "temperature": 0, "ignore_eos": True, "stream": stream}

    def _run(self, thread):
        turn = thread
        while not self._end.is_set():
            seed = self.seeds[turn % len(self.seeds)]
            answer = ask(self.url, seed, self.body(seed, stream=turn % 2 == 0), self.timeout)
            with self._lock:
                self.answers.append(answer)
            if answer.outcome == "refused":
                self._end.wait(0.2)
            turn += 5

    def undisturbed(self):
        """{seed: text}, asked one by one."""
        texts = {}
        for seed in self.seeds:
            answer = ask(self.url, seed, self.body(seed, stream=False), self.timeout)
            assert answer.outcome == "ok", answer.detail
            texts[seed] = answer.text
        return texts

    def count(self):
        with self._lock:
            return len(self.answers)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(self.timeout + 10)
