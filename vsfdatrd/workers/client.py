"""Client side of a worker process that runs an engine.

Some libraries cannot share a process with everything else a script loads: two plugins that bring different builds of
OpenVINO prevent each other from loading, and anything a library prints to stdout would end up in the video. In a
separate process the library is isolated, its output goes to stderr, and a crash makes frames fail with an error
message instead of ending the encode. Frames travel through shared memory, so no copy is needed.

Both sides exchange lines of JSON. A request ``{"do": name, ...}`` is answered by ``{"result": ...}`` or ``{"error":
text, "kind": class}``. Once an engine is loaded, ``{"do": "run", "slot": n}`` is answered as soon as that slot's
frame is done, by ``{"slot": n}`` with or without an error.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import IO, Any, cast

from vsfdatrd.errors import (
    CheckpointError,
    EngineBuildError,
    EngineError,
    EngineUnavailable,
    FdatrdError,
    PrecisionUnfit,
)
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.workers import spawn
from vsfdatrd.workers.shared_memory import SharedMemory

_EXIT_TIMEOUT = 5.0  # seconds a process may take to exit by itself
_SO_NOSIGPIPE = 0x1022  # macOS socket option; Python has no name for it
_ERROR_CLASSES: dict[str | None, type[FdatrdError]] = {
    kind.__name__: kind for kind in (EngineBuildError, PrecisionUnfit, EngineUnavailable, CheckpointError)
}


class _RequestChannel:
    """Channel for requests to a process: a socket, or a pipe on Windows.

    Writing to a pipe whose reader has died raises SIGPIPE, which ends a host program that does not ignore the signal.
    Python ignores it, vspipe does not. Writes to a socket can suppress the signal.
    """

    def __init__(self) -> None:
        self._channel: socket.socket | IO[bytes] | None = None
        self.other: socket.socket | int = subprocess.PIPE
        """The child's end, to be passed as ``stdin`` to subprocess."""
        if sys.platform != "win32":
            self._channel, self.other = socket.socketpair()
            if sys.platform == "darwin":
                self._channel.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)

    def on_started(self, process: "subprocess.Popen[bytes]") -> None:
        """Close this process's copy of the child's end, which the process has inherited."""
        if isinstance(self.other, socket.socket):
            self.other.close()
        else:
            self._channel = process.stdin

    def send(self, line: bytes) -> None:
        """Send a request, a line ending in a newline.

        Raises:
            OSError: The process is gone.
            ValueError: The channel is closed.
        """
        if isinstance(self._channel, socket.socket):
            self._channel.sendall(line, getattr(socket, "MSG_NOSIGNAL", 0))
        elif self._channel is not None:
            self._channel.write(line)
            self._channel.flush()

    def close(self) -> None:
        """Close the channel. The process reads end of file and exits."""
        for end in (self._channel, self.other):
            if end is not None and not isinstance(end, int):
                with contextlib.suppress(OSError):
                    end.close()


class Worker:
    """A running worker process and its request channel."""

    def __init__(self, module: str, purpose: str = "engine", *, huge_pages: bool = False) -> None:
        """Start ``python -m module``.

        Args:
            module: The module to run in the process.
            purpose: What the process does, for messages.
            huge_pages: See `spawn.child_environment`.

        Raises:
            EngineError: The process cannot be started.
        """
        interpreter = spawn.find_python()
        self._purpose = purpose
        fill_standard_streams()
        with contextlib.ExitStack() as held:
            try:
                self.memory = SharedMemory()
                held.callback(self.memory.close)
                self._requests = _RequestChannel()
                held.callback(self._requests.close)
                self._process = spawn.start_process(
                    # -P: files in the current directory, such as json.py, are not modules.
                    [interpreter, "-P", "-m", module, str(os.getpid())],
                    stdin=self._requests.other,
                    stdout=subprocess.PIPE,
                    stderr=spawn.child_stderr(),
                    env=spawn.child_environment(huge_pages=huge_pages),
                    pass_fds=() if isinstance(self.memory.address, str) else (self.memory.fd,),
                    creationflags=spawn.creation_flags(),
                )
            except OSError as error:
                raise EngineError(f"the {purpose}'s process cannot be started: {error}") from error
            held.pop_all()
        self._requests.on_started(self._process)
        self._sending = threading.Lock()
        self.replies = cast(IO[bytes], self._process.stdout)
        """Stream of the answers, one per line."""
        self.followed = False  # True once another thread reads the replies to end of file and closes them

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return code of the process; None until `exit_reason` or `close` has waited for its end."""
        return self._process.returncode

    def send(self, **message: Any) -> None:
        """Send one request.

        Args:
            **message: Fields of the request; values that JSON can represent.

        Raises:
            EngineError: The process is gone.
        """
        try:
            with self._sending:
                self._requests.send(json.dumps(message).encode() + b"\n")
        except (OSError, ValueError) as error:
            raise EngineError(self.exit_reason()) from error

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer.

        Args:
            request: Name of the request.
            **arguments: Arguments of the request; values that JSON can represent.

        Returns:
            The result field of the answer.

        Raises:
            EngineError: The process died, or the request failed there (also subclasses, as raised by the worker).
            CheckpointError: The worker raised it.
        """
        self.send(do=request, **arguments)
        line = self.replies.readline()
        while line.endswith(b"\n") and not line.startswith(b"{"):  # printed by a library before `reply_stream`
            line = self.replies.readline()
        if not line.endswith(b"\n"):  # end of file, or a line cut off when the process died
            raise EngineError(self.exit_reason())
        answer = json.loads(line)
        if "error" in answer:
            raise _ERROR_CLASSES.get(answer.get("kind"), EngineError)(answer["error"])
        return answer["result"]

    def exit_reason(self) -> str:
        """Describe in a sentence how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_TIMEOUT)
        code = self._process.returncode
        ending = "it has not ended yet" if code is None else spawn.describe_exit(code)
        return (
            f"the {self._purpose}'s process ended unexpectedly ({ending}); its last messages are on stderr. "
            "Memory may have run out"
        )

    def kill(self) -> None:
        """End the process at once, even while it computes. `close` is still necessary."""
        self._process.kill()

    def close(self) -> None:
        """End the process. Closing the request channel asks it to exit; it is killed after `_EXIT_TIMEOUT` seconds."""
        self._requests.close()
        try:
            self._process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self.followed:
            self.replies.close()
        self.memory.close()


class StandbyWorker:
    """A worker kept ready for the next engine.

    It answers capability queries, builds and loads the engine, and is then handed over by `detach`.
    """

    def __init__(self, module: str, *, huge_pages: bool = False) -> None:
        """Prepare a standby worker without starting the process.

        Args:
            module: The module to run in the process.
            huge_pages: See `spawn.child_environment`.
        """
        self._module, self._huge_pages = module, huge_pages
        self._worker: Worker | None = None
        self._about: dict[str, Any] | None = None
        self._talking = threading.RLock()

    def describe(self) -> dict[str, Any]:
        """Return the library's capabilities on this machine. The process is asked only once."""
        if self._about is None:
            self._about = self.ask("describe")
        return self._about

    def warm_up(self) -> None:
        """Start the process, which imports its library in the background. See `Backend.warm_up`."""
        self.start()

    def start(self) -> Worker:
        """Return the process, starting it if necessary.

        Raises:
            EngineError: The process cannot be started.
        """
        with self._talking:
            if self._worker is None:
                self._worker = Worker(self._module, huge_pages=self._huge_pages)
            return self._worker

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request to the standby process and wait for the answer; see `Worker.ask`.

        After an error the process is ended, and the next request starts another one.
        """
        with self._talking:
            worker = self.start()
            try:
                return worker.ask(request, **arguments)
            except BaseException as error:
                self._worker = None
                if not isinstance(error, FdatrdError):
                    worker.kill()  # interrupted (Ctrl-C): a late answer would pass for that of the next request
                worker.close()
                raise

    def shutdown(self) -> None:
        """End the process if it has not been handed over. The next request starts another one."""
        with self._talking:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def detach(self) -> Worker:
        """Hand over the process: it belongs to the caller, who has to close it.

        Raises:
            EngineError: There is no process.
        """
        with self._talking:
            worker, self._worker = self._worker, None
        if worker is None:
            raise EngineError("the engine's process is gone")
        return worker
