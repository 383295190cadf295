"""Ray clusters of several simulated machines, each in a network namespace if that is allowed."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil


class Machine:
    """The processes of one machine of a cluster."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it is up."""
        end = time.monotonic() + 90
        while "Ray runtime started" not in (text := self._log.read_text()):
            assert self._process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All of them, parents first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def named(self, words: str) -> list[psutil.Process]:
        """Those with words in their command line."""
        result = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    result.append(process)
        return result

    def kill(self) -> None:
        """Pull the plug."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()


class Machines:
    """A cluster. The head's other ports are Ray's own choice."""

    head: Machine

    def __init__(self, folder: Path, apart: bool) -> None:
        """folder: with a short name. apart: whether each machine has a network of its own."""
        self._folder, self._apart = folder, apart
        self._networks: list[subprocess.Popen[bytes]] = []
        self._all: list[Machine] = []
        with socket.socket() as one:  # a port that nobody else has
            one.bind(("127.0.0.1", 0))
            self._port = one.getsockname()[1]
        self.address = f"{'10.77.0.1' if apart else '127.0.0.1'}:{self._port}"

    def start(self, *options: str, before: str = "", **environment: str) -> Machine:
        """One more machine; the first one is the head. before: a shell command that runs first, on its own mounts."""
        number = len(self._all)
        place = [
            "--head",
            "--port",
            str(self._port),
            "--include-dashboard",
            "false",
            "--temp-dir",
            str(self._folder / "ray"),
        ]
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--disable-usage-stats",
            "--object-store-memory",
            "80000000",
            *(["--address", self.address] if number else place),
            *options,
        ]
        if self._apart:
            command[2:2] = ["--node-ip-address", f"10.77.0.{number + 1}"]
            command = [*self._network(number), *command]
        if before:
            command = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
        # Without Python processes in reserve, of which most tests need none.
        machine = Machine(command, {"RAY_enable_worker_prestart": "0"} | environment, self._folder / f"{number}.log")
        self._all.append(machine)
        machine.wait()
        self.head = self._all[0]
        return machine

    def inside(self) -> list[str]:
        """What a command begins with to run on the head."""
        return ["nsenter", "-t", str(self._networks[0].pid), "-n"] if self._apart else []

    def cut(self, number: int) -> None:
        """Disconnect a machine without closing its connections."""
        subprocess.run([*self.inside(), "ip", "link", "set", f"v{number}", "down"], check=True)

    def close(self) -> None:
        """End everything."""
        for machine in reversed(self._all):
            machine.kill()
        for network in self._networks:
            network.kill()
            network.wait()

    def _network(self, number: int) -> list[str]:
        process = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        self._networks.append(process)
        enter = ["nsenter", "-t", str(process.pid), "-n"]
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{process.pid}/ns/net") == ours:
            time.sleep(0.01)
        steps = [[*enter, "ip", "link", "set", "lo", "up"]]
        if number:
            head = self._networks[0].pid
            there = ["nsenter", "-t", str(head), "-n"]
            steps += [
                [
                    "ip",
                    "link",
                    "add",
                    "name",
                    f"v{number}",
                    "netns",
                    str(head),
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "v0",
                    "netns",
                    str(process.pid),
                ],
                [*there, "ip", "link", "set", f"v{number}", "up"],
                # A route for each cable: with a subnet of their own, all would share the first one's.
                [*there, "ip", "route", "add", f"10.77.0.{number + 1}/32", "dev", f"v{number}"],
                [*enter, "ip", "addr", "add", f"10.77.0.{number + 1}/24", "dev", "v0"],
                [*enter, "ip", "link", "set", "v0", "up"],
            ]
        else:
            steps.append([*enter, "ip", "addr", "add", "10.77.0.1/32", "dev", "lo"])
        for step in steps:
            subprocess.run(step, check=True)
        return enter


def networks_can_be_made() -> bool:
    """Return whether this user can create network namespaces."""
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        return False
    cable = "ip link add name v1 type veth peer name v2"
    return subprocess.run(["unshare", "-n", "sh", "-c", cable], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def machines(apart: bool = False) -> Iterator[Machines]:
    """Yield a cluster without machines; all machines are stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Machines(Path(folder), apart)
        try:
            yield cluster
        finally:
            cluster.close()


def until(result: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not result():
        assert time.monotonic() < end
        time.sleep(0.02)
