"""Two hosts on one machine, for tests of what crosses a real link: namespaces of their own for network, IPC, host name,
processes and mounts (shared memory would bypass the link), joined by a virtual Ethernet pair that tc limits to a rate,
and delays where the kernel can. The link may be cut, and mended.

    with TwoHosts(rate="1gbit") as hosts:
        with LinkedCluster(hosts, workers=1, flags=[...]) as cluster:
            http(cluster.url + "/v1/models")
            hosts.cut()

Host a runs mpirun, the coordinator and the workers; host b the stores. Needs root and iproute2; TwoHosts.missing()
says what is not there. Nothing outlives the holder process of host a: its end ends every process in both hosts, and with
them the namespaces and the link.
"""

import ctypes
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile

from support.cluster import PATIENCE, ROOT, Cluster, binary, wait_until

LINK = "lk0"  # the network device, in both hosts
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
BURST = "256kb"
_NAMESPACES = ["--net", "--ipc", "--uts", "--pid", "--mount"]
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Host:
    """A process that does nothing and holds the namespaces. `within`: prefix that starts it in another host."""

    def __init__(self, name, within=()):
        self.name = name
        self.pid = None
        # Its own /dev/shm, and the /sys of its own network (UCX looks for devices there); the rest of the file system is
        # the machine's.
        setup = (f"hostname lk-{name} && mount -t tmpfs tmpfs /dev/shm && mount -t sysfs sysfs /sys && "
                 "ip link set lo up && exec sleep infinity")
        self._unshare = subprocess.Popen(
            [*within, "unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", setup],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_die_with_parent)
        try:
            self.pid = wait_until(self._holder, f"namespaces of host {name}")
        except TimeoutError:
            self.close()
            raise

    def _holder(self):
        """The pid of `sleep`, seen from here: the last child of the line that starts at what was started."""
        if self._unshare.poll() is not None:
            raise RuntimeError(f"unshare: {self._unshare.stderr.read().decode().strip()}")
        pid = self._unshare.pid
        try:
            while children := pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                pid = int(children[0])
            return pid if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "sleep" else None
        except OSError:  # it just became something else
            return None

    def inside(self):
        """Prefix of a command that shall run in this host."""
        return ["nsenter", "-t", str(self.pid), *_NAMESPACES, "--"]

    def pid_within(self):
        """The holder's pid as the host sees it that it was started in."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-2])
        raise RuntimeError("no NSpid in /proc: kernel too old")

    def net(self, *command):
        return _run("nsenter", "-t", self.pid, "--net", "--", *command)

    def sent_bytes(self):
        """What this host has put on the link."""
        return int(_run(*self.inside(), "cat", "/proc/net/dev").split(f"{LINK}:")[1].split()[8])

    def close(self):
        """The holder is process 1 of its namespace: the kernel ends the others with it, and waits for them."""
        try:
            os.kill(self.pid or self._unshare.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            self._unshare.wait(60)
        except subprocess.TimeoutExpired:
            self._unshare.kill()  # --kill-child takes the holder along
            self._unshare.wait(60)
        self._unshare.stderr.close()


class TwoHosts:
    def __init__(self, rate="1gbit"):
        self.rate = rate
        self.a = self.b = None
        self._folder = None
        self._home = None

    @staticmethod
    def missing():
        """Why two hosts cannot be made here, or None."""
        if os.geteuid() != 0:
            return "two hosts need root (namespaces, network devices)"
        for tool in ("unshare", "nsenter", "ip", "tc", "mpirun"):
            if not shutil.which(tool):
                return f"two hosts need {tool}"
        try:
            with TwoHosts():
                return None
        except (RuntimeError, TimeoutError, OSError) as error:
            return f"two hosts cannot be made here: {error}"

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self):
        self._folder = tempfile.TemporaryDirectory(prefix="lowkey-hosts-")
        self.a = Host("a")
        # Started inside host a, so that mpirun there can reach it (a namespace of processes sees those below it).
        self.b = Host("b", within=self.a.inside())
        _run("ip", "link", "add", LINK, "netns", self.a.pid, "type", "veth", "peer", "name", LINK, "netns", self.b.pid)
        for host in (self.a, self.b):
            host.net("ip", "address", "add", f"{ADDRESSES[host.name]}/24", "dev", LINK)
            host.net("ip", "link", "set", LINK, "up")
        # The kernel tells up to a second late that a new link carries; until then UCX passes it over.
        for host in (self.a, self.b):
            self._wait_carrier(host, "up")
        self.set_rate(self.rate)
        # What mpirun uses for ssh: AGENT HOST COMMAND...
        self.agent = pathlib.Path(self._folder.name) / "agent"
        self.agent.write_text("#!/bin/sh\nshift\n"
                              f"exec nsenter -t {self.b.pid_within()} {' '.join(_NAMESPACES)} -- sh -c \"$*\"\n")
        self.agent.chmod(0o700)
        self._enter_network()

    @staticmethod
    def _wait_carrier(host, *states):
        wait_until(lambda: _run(*host.inside(), "cat", f"/sys/class/net/{LINK}/operstate").strip() in states,
                   f"link of host {host.name}")

    def set_rate(self, rate):
        """Both directions, from now on."""
        for host in (self.a, self.b):
            host.net("tc", "qdisc", "replace", "dev", LINK, "root", "handle", "1:", "tbf", "rate", rate, "burst", BURST,
                     "latency", "100ms")
        self.rate = rate

    def set_delay(self, milliseconds):
        """Each direction, from now on, behind the rate. RuntimeError where the kernel has no netem."""
        for host in (self.a, self.b):
            host.net("tc", "qdisc", "replace", "dev", LINK, "parent", "1:1", "netem", "delay", f"{milliseconds}ms")

    def no_delay(self):
        """Why set_delay() cannot work here, or None."""
        try:
            self.set_delay(1)
            self.set_delay(0)
            return None
        except RuntimeError as error:
            return f"this kernel has no netem: {error}"

    def cut(self):
        """Takes the link away: what is on it is lost, and nobody is told; connections stay open until somebody misses the
        other end. Host a talks to itself as before."""
        self.b.net("ip", "link", "set", LINK, "down")
        self._wait_carrier(self.a, "down", "lowerlayerdown")

    def mend(self):
        self.b.net("ip", "link", "set", LINK, "up")
        for host in (self.a, self.b):
            self._wait_carrier(host, "up")

    def _enter_network(self):
        """This thread, and those it starts, talk in host a's network: that is where HTTP is served."""
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        target = os.open(f"/proc/{self.a.pid}/ns/net", os.O_RDONLY)
        try:
            if _libc.setns(target, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(target)

    def close(self):
        if self._home is not None:
            _libc.setns(self._home, _CLONE_NEWNET)
            os.close(self._home)
            self._home = None
        for host in (self.b, self.a):
            if host is not None:
                host.close()
        self.a = self.b = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __exit__(self, *_):
        self.close()


def readme_launch():
    """The words of README.md's mpirun line with a coordinator, workers and a store on named hosts."""
    blocks = re.findall(r"^```sh\n(mpirun .*?)```", (ROOT / "README.md").read_text(), re.M | re.S)
    launch = [block for block in blocks if "lowkey store" in block and "--join" not in block]
    if len(launch) != 1:
        raise RuntimeError(f"README.md: one mpirun line with `lowkey store` and without --join expected, {len(launch)} found")
    return shlex.split(launch[0].replace("\\\n", " "))


class LinkedCluster(Cluster):
    """Coordinator and workers in host a, stores in host b, or all of it in host a; one replica."""

    def __init__(self, hosts, workers=1, stores=1, recover=True, one_host=False, **options):
        super().__init__(workers=workers, stores=stores, **options)
        self.hosts, self.workers, self.stores, self.recover = hosts, workers, stores, recover
        self.one_host = one_host
        self.env.setdefault("UCX_TLS", "tcp,self")
        self.env["OMPI_MCA_btl_vader_backing_directory"] = "/dev/shm"  # which is the hosts' own, and goes with them
        self.port = 8000  # the network is the test's own
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self):
        """The launch over several hosts that README.md shows, with these two hosts in it."""
        here = {"host-a:2": f"{ADDRESSES['a']}:{1 + self.workers}", "host-b:1": f"{ADDRESSES['b']}:{self.stores}",
                "eth0": LINK, "/models/llama": str(self.model), "lowkey": str(binary())}
        if self.one_host:
            here |= dict.fromkeys(("host-a:2", "host-b:1"), f"{ADDRESSES['a']}:{1 + self.workers + self.stores}")
        words = [here.get(word, word) for word in readme_launch()]
        for role, count in (("worker", self.workers), ("store", self.stores)):
            words[words.index(role) - 4] = str(count)  # -n COUNT --host HOST lowkey ROLE
        settings = ["--port", str(self.port), *self.flags]
        if self.cluster_port:
            settings += ["--cluster-port", str(self.cluster_port), "--cluster-secret", self.SECRET]
        command = [word for one in " ".join(words).split(" : ") for word in (*one.split(" "), *settings, ":")][:-1]
        if not self.recover:
            command.remove("--enable-recovery")
        return [*self.hosts.a.inside(), command[0], "--allow-run-as-root", "--mca", "plm_rsh_agent",
                str(self.hosts.agent), *command[1:]]
