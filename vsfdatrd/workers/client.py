"""An engine in a process of its own.

Some libraries cannot share a process with whatever else a script loads: two plugins that bring different builds of
OpenVINO stop each other from loading, and anything that a library prints to stdout would end up in the video. In a
process of its own a library meets nobody, its output goes to stderr, and if it crashes, frames fail with a sentence
instead of taking the encode with them. Frames travel through shared memory, so nothing is copied on the way.

The two sides talk in lines of JSON: a request ``{"do": name, ...}`` is answered by ``{"result": ...}`` or
``{"error": text, "kind": class}``; once an engine is loaded, ``{"do": "run", "slot": n}`` is answered whenever that
slot's frame is done, by ``{"slot": n}`` with or without an error.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import IO, Any

from vsfdatrd.errors import EngineBuildError, EngineError, EngineUnavailable, PrecisionUnfit
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.workers import spawn
from vsfdatrd.workers.shared_memory import SharedMemory

_PATIENCE = 5.0  # seconds a process may take to end by itself
_SO_NOSIGPIPE = 0x1022  # of macOS; Python has no name for it
_KINDS: dict[str | None, type[EngineError]] = {
    kind.__name__: kind for kind in (EngineBuildError, PrecisionUnfit, EngineUnavailable)
}


class _Requests:
    """The way of requests to a process: a socket, or a pipe on Windows.

    Writing to a pipe whose reader has died ends a program with SIGPIPE unless it ignores that signal, as Python
    does and vspipe does not. A socket can be written to without it.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pipe: IO[bytes] | None = None
        self.other: socket.socket | int = subprocess.PIPE
        """The other end, as `stdin` for subprocess."""
        if sys.platform != "win32":
            self._socket, self.other = socket.socketpair()
            if sys.platform == "darwin":
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)

    def started(self, process: "subprocess.Popen[bytes] | None") -> None:
        """Let go of the other end once a process has it; None if none could be started."""
        if isinstance(self.other, socket.socket):
            self.other.close()
        if process is None:
            self.close()
        else:
            self._pipe = process.stdin

    def send(self, line: bytes) -> None:
        """Send a line. Raises OSError or ValueError if the process is gone or the way is closed."""
        if self._socket is not None:
            self._socket.sendall(line, getattr(socket, "MSG_NOSIGNAL", 0))
        elif self._pipe is not None:
            self._pipe.write(line)
            self._pipe.flush()

    def close(self) -> None:
        """Close it, which tells the process that there is nothing more to do."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.close()
            if self._pipe is not None:
                self._pipe.close()


class Worker:
    """A running process and the conversation with it."""

    def __init__(self, module: str) -> None:
        """Start `python -m module`. Raises EngineError if that is not possible."""
        interpreter = spawn.python()
        fill_standard_streams()
        self.memory = SharedMemory()
        inherited = () if isinstance(self.memory.address, str) else (self.memory.fd,)
        self._requests = _Requests()
        try:
            self._process = spawn.start(
                [interpreter, "-m", module, str(os.getpid())],
                stdin=self._requests.other,
                stdout=subprocess.PIPE,
                stderr=spawn.stderr(),
                env=spawn.environment(),
                pass_fds=inherited,
                creationflags=spawn.no_window(),
            )
        except OSError as error:
            self._requests.started(None)
            self.memory.close()
            raise EngineError(f"the engine's process cannot be started: {error}") from error
        self._requests.started(self._process)
        self._sending = threading.Lock()
        self.followed = False  # by a thread that reads the replies to their end, and closes them

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def replies(self) -> IO[bytes]:
        """Where its answers arrive, a line each."""
        if self._process.stdout is None:
            raise EngineError("the engine's process was started without a pipe")
        return self._process.stdout

    def send(self, **message: Any) -> None:
        """Send one request. Raises EngineError if the process is gone."""
        try:
            with self._sending:
                self._requests.send(json.dumps(message).encode() + b"\n")
        except (OSError, ValueError) as error:
            raise EngineError(self.exit_reason()) from error

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer. Raises what the other side raised, or EngineError if it died."""
        self.send(do=do, **arguments)
        line = self.replies.readline()
        if not line.endswith(b"\n"):  # nothing, or what it had said when it died
            raise EngineError(self.exit_reason())
        answer = json.loads(line)
        if "error" in answer:
            raise _KINDS.get(answer.get("kind"), EngineError)(answer["error"])
        return answer["result"]

    def exit_reason(self) -> str:
        """How the process ended, as a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.returncode
        how = "it has not quite ended yet" if code is None else spawn.ending(code)
        return f"the engine's process ended unexpectedly ({how}); its last words are on stderr. Memory may have run out"

    def close(self) -> None:
        """End the process, at first kindly: it leaves when its requests end."""
        self._requests.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None and not self.followed:
            self._process.stdout.close()
        self.memory.close()


class StandbyWorker:
    """The process for the next engine: asked what the machine can do, it then builds and loads, and becomes that
    engine's own.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._worker: Worker | None = None
        self._about: dict[str, Any] | None = None
        self._talking = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """What its library can use here; asked once."""
        if self._about is None:
            self._about = self.ask("describe")
        return self._about

    def start(self) -> Worker:
        """The process, started if there is none."""
        with self._talking:
            if self._worker is None:
                self._worker = Worker(self._module)
            return self._worker

    def ask(self, do: str, **arguments: Any) -> Any:
        """Ask the process. One that failed is ended; the next question starts another."""
        worker = self.start()
        with self._talking:
            try:
                return worker.ask(do, **arguments)
            except EngineError:
                worker.close()
                if self._worker is worker:
                    self._worker = None
                raise

    def rest(self) -> None:
        """End the process, if nobody took it; the next question starts another."""
        with self._talking:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def take(self) -> Worker:
        """The process, to keep."""
        with self._talking:
            worker, self._worker = self._worker, None
        if worker is None:
            raise EngineError("the engine's process is gone")
        return worker
