"""A real cluster for tests: `lowkey serve` under mpirun, with a deadline on everything and no process left behind.

    with Cluster(workers=2, flags=["--dtype", "fp32"]) as cluster:
        urllib.request.urlopen(cluster.url + "/v1/models")

Standard library only. Exit code 77 (`skip`) tells CTest that a test cannot run here.
"""

import atexit
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from http.client import HTTPException

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "deploy" / "demo-model"
PATIENCE = 120  # seconds that anything may take that has to happen: only a failure takes so long, however busy the machine
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_TAG = "LKTEST_RUN_ID"  # marks every process of a cluster in its environment
_ports = set()          # that were given out


def skip(reason):
    """Ends the test as skipped, with the reason in its output."""
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(77)


def binary():
    """The lowkey executable under test: TEST_BINARY, or the release build."""
    path = pathlib.Path(os.environ.get("TEST_BINARY", ROOT / "build" / "release" / "lowkey"))
    if not path.exists():
        skip(f"{path} is not built")
    return path


def free_port():
    """Below the range from which the system itself hands out ports: the cluster's own connections must not take it
    before the server binds to it. Never the same twice: nobody is bound to it yet."""
    lowest = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest) if lowest > 4096 else random.randrange(12000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _ports:
            _ports.add(port)
            return port


def wait_until(condition, what, seconds=PATIENCE):
    """Polls until `condition()` is true and returns its value; raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def http(url, body=None, headers=None, timeout=PATIENCE):
    """(status, parsed JSON or text) of a GET, or of a POST when there is a body. OSError: no whole answer came."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except HTTPException as error:  # cut in the middle
        raise ConnectionError(repr(error)) from None
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def sse(url, body, headers=None, timeout=PATIENCE):
    """Yields the data of each server-sent event of a streamed answer; `[DONE]` ends it, and must come: else EOFError, or
    OSError."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        try:
            for line in response:
                line = line.decode().rstrip("\r\n")
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield json.loads(line[len("data: "):])
        except HTTPException as error:
            raise EOFError(f"the stream was cut inside an event: {error!r}") from None
    raise EOFError("the stream ended without [DONE]")


def die_with_parent():
    """For preexec_fn: it gets SIGTERM, upon which mpirun ends its ranks, when the test itself is killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Launch:
    """A command with all its processes: a log, a deadline on every wait, none of them left behind."""

    def __init__(self, command, env=None):
        self.arguments = [str(part) for part in command]
        self.env = dict(env or {})
        self._id = uuid.uuid4().hex
        # An MPI job that is killed leaves its session and its shared memory behind: in folders that go with this object.
        self._folder = tempfile.TemporaryDirectory(prefix="lowkey-cluster-", ignore_cleanup_errors=True)
        self._memory = tempfile.TemporaryDirectory(prefix="lowkey-cluster-", dir=MEMORY, ignore_cleanup_errors=True)
        self.log_path = pathlib.Path(self._folder.name) / "log"
        self._process = None

    def command(self):
        return self.arguments

    def launch(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("LOWKEY_")}
        env.update({"TMPDIR": self._folder.name, "OMPI_MCA_btl_vader_backing_directory": self._memory.name, **self.env})
        env[_TAG] = self._id
        atexit.register(self.kill)  # also when a test forgets, or is interrupted
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=subprocess.STDOUT, env=env, start_new_session=True,
                                             preexec_fn=die_with_parent)
        return self

    def ended(self):
        return self._process.poll() is not None

    def wait(self):
        """The command's exit status."""
        return self._process.wait(PATIENCE)

    def wait_gone(self):
        """Until none of its processes is left: one that was killed takes a moment."""
        wait_until(lambda: not self.all_pids(), "every process to end")

    def wait_log(self, words):
        """Until the log has them: mpirun passes on what its ranks print, later."""
        wait_until(lambda: words in self.log(), f"'{words}' in the log")

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def processes(self):
        """{MPI rank: pid} of the ranks that are alive."""
        found = {}
        for pid, env in self._tagged():
            rank = env.get("OMPI_COMM_WORLD_RANK")
            if rank is not None:
                found[int(rank)] = pid
        return dict(sorted(found.items()))

    def all_pids(self):
        """The command and everything that it started."""
        return [pid for pid, _ in self._tagged()]

    def _tagged(self):
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                raw = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and f"{_TAG}={self._id}".encode() in raw:
                yield int(entry.name), dict(p.split("=", 1) for p in raw.decode(errors="replace").split("\0") if "=" in p)

    def kill(self):
        """Ends every process, whatever state it is in."""
        def ended():
            alive = self.all_pids()
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if self._process:
                self._process.poll()
            return not alive
        try:
            wait_until(ended, "every process to end", seconds=30)
        except TimeoutError as error:
            print(error, file=sys.stderr)
        if self._process:
            self._process.wait(30)

    def _clean(self):
        self._folder.cleanup()
        self._memory.cleanup()

    def __enter__(self):
        return self.launch()

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print(f"--- log of {' '.join(self.command())} ---\n{self.log()}", file=sys.stderr)
        self.kill()
        self._clean()


def mpirun(ranks, *arguments, recovery=True):
    """Without recovery one rank's end ends all, and mpirun ends with what that rank ended with."""
    if not shutil.which("mpirun"):
        skip("mpirun is not installed")
    launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    if recovery:
        launcher.insert(1, "--enable-recovery")
    if os.geteuid() == 0:
        launcher.insert(1, "--allow-run-as-root")
    return launcher + [str(binary()), *map(str, arguments)]


class Cluster(Launch):
    """`mpirun -n 1 + workers + stores lowkey serve`; ready when the `with` body begins.

    With `open_port=True` it has a cluster port and a given secret: replicas may join it, and its coordinator may be
    started again. `replicas`: of `workers` ranks each."""

    SECRET = "a secret of this test cluster"

    def __init__(self, model=DEMO_MODEL, workers=2, stores=1, flags=(), env=None, ready_seconds=PATIENCE, ranks=None,
                 headers=None, replicas=1, open_port=False):
        super().__init__([], env)
        self.model = pathlib.Path(model)
        self.replicas = replicas
        self.ranks = ranks or 1 + replicas * workers + stores
        self.flags = [str(flag) for flag in flags]
        if (stores != 1 or replicas != 1) and "--stores" not in self.flags:
            self.flags += ["--tp", str(workers), "--replicas", str(replicas), "--stores", str(stores)]
        self.ready_seconds = ready_seconds
        self.headers = headers or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.cluster_port = free_port() if open_port else None
        self.seconds_to_ready = None
        self._others = []  # jobs that joined, coordinators that were started again

    def shared_flags(self):
        """What a process that comes later needs to be let in."""
        return ["--model", self.model, "--cluster-secret", self.SECRET]

    def command(self):
        ports = ["--port", self.port]
        if self.cluster_port:
            ports += ["--cluster-port", self.cluster_port, "--cluster-secret", self.SECRET]
        return mpirun(self.ranks, "serve", "--model", self.model, *ports, *self.flags)

    def start(self):
        begin = time.monotonic()
        self.launch()
        try:
            wait_until(lambda: self._ready() >= self.replicas, "/ready", self.ready_seconds)
        except Exception as error:
            self.kill()
            raise RuntimeError(f"{error}\n--- log of the cluster ---\n{self.log()}") from None
        self.seconds_to_ready = time.monotonic() - begin
        return self

    def ready_replicas(self):
        try:
            status, answer = http(self.url + "/ready", timeout=5)
        except OSError:
            return 0
        return answer["replicas"] if status == 200 else 0

    def _ready(self):
        if self.ended():
            raise RuntimeError(f"mpirun ended with {self._process.returncode} before the cluster was ready")
        return self.ready_replicas()

    def wait_replicas(self, count):
        """Until exactly so many replicas can serve."""
        wait_until(lambda: self.ready_replicas() == count, f"{count} replica(s) that can serve")

    def join(self, workers=1, flags=(), model=None, secret=None, recovery=True):
        """A job of one more replica; not waited for."""
        shared = ["--model", model or self.model, "--cluster-secret", secret or self.SECRET]
        job = Launch(mpirun(workers, "worker", "--join", f"127.0.0.1:{self.cluster_port}", *shared, *flags,
                            recovery=recovery), self.env)
        self._others.append(job)
        return job.launch()

    def join_store(self, flags=()):
        """A job of one more store; not waited for."""
        job = Launch(mpirun(1, "store", "--join", f"127.0.0.1:{self.cluster_port}", *self.shared_flags(), *flags), self.env)
        self._others.append(job)
        return job.launch()

    def start_coordinator(self, flags=()):
        """The coordinator again, alone, at its old addresses; not waited for."""
        job = Launch([binary(), "coordinator", "--port", self.port, "--cluster-port", self.cluster_port,
                      *self.shared_flags(), *flags], self.env)
        self._others.append(job)
        return job.launch()

    def metrics(self):
        """The text of /metrics. Who does not answer within a second is left out of a page, as if it had counted nothing
        (coordinator/api/metrics_page.h): see all_metrics()."""
        status, text = http(self.url + "/metrics", headers=self.headers)
        if status != 200:
            raise RuntimeError(f"/metrics answered {status}: {text}")
        return text

    def all_metrics(self, *roles):
        """The text of a page on which every member has told its own, or every one of these roles."""
        def page():
            text = self.metrics()
            up = re.findall(r'^lowkey_rank_up\{.*peer_role="(\w+)".*\} ([01])$', text, re.M)
            told = [value for role, value in up if role in roles or not roles]
            enough = bool(told) if roles else len(told) >= self.ranks - 1
            return text if enough and "0" not in told else None
        return wait_until(page, "a page with the metrics of every rank")

    def stop(self):
        """SIGTERM to the coordinator: it drains and ends the job. Returns mpirun's exit status."""
        coordinator = self.processes().get(0)
        if coordinator:
            os.kill(coordinator, signal.SIGTERM)
        return self.wait()

    def everything(self):
        """Every process of this cluster, of those that joined it too."""
        return self.all_pids() + [pid for job in self._others for pid in job.all_pids()]

    def wait_gone(self):
        wait_until(lambda: not self.everything(), "every process to end")

    def all_logs(self):
        return "\n".join([self.log()] + [f"--- {' '.join(job.command())} ---\n{job.log()}" for job in self._others])

    def kill(self):
        for job in self._others:
            job.kill()
        super().kill()

    def _clean(self):
        for job in self._others:
            job._clean()
        super()._clean()

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print(f"--- log of the cluster ---\n{self.all_logs()}", file=sys.stderr)
        self.kill()
        self._clean()
