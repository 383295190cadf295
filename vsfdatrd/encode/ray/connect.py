"""Connect to an existing Ray cluster, with error messages for users if that fails."""

import importlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from vsfdatrd.errors import ArgumentError, EncodeError

INSTALL_COMMAND = "pip install 'vsfdatrd[ray]'"
_CONNECT_TIMEOUT = 5.0  # seconds to wait for a TCP connection to the cluster's address
_AUTO = "auto"


def check_address(address: str) -> None:
    """Check the syntax of a cluster address.

    Args:
        address: The argument of ``--ray``.

    Raises:
        ArgumentError: `address` is neither ``auto`` nor ``host:port``.
    """
    if address.startswith("ray://"):
        raise ArgumentError(
            f"--ray {address} is an address of Ray Client, through which files cannot be sent back; run this on a "
            "machine of the cluster, with --ray auto"
        )
    if address != _AUTO and not re.fullmatch(r"[^\s:/]+:\d{1,5}", address):
        raise ArgumentError(
            f"--ray {address} is not an address of a Ray cluster; give auto, or host:port as `ray start "
            "--head` prints it"
        )


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster for the duration of the ``with``, and yield the module `ray`.

    Output to `sys.stdout` is discarded meanwhile: a thread of Ray prints there when workers die.

    Args:
        address: ``auto`` or ``host:port``, see `check_address`.

    Raises:
        ArgumentError: The address is invalid, see `check_address`.
        EncodeError: Ray is not installed, nothing answers, this machine is not part of the cluster, or the versions of
            Ray or Python differ.
    """
    check_address(address)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise EncodeError(
            f"--ray needs Ray, which is not installed; {INSTALL_COMMAND}, in the version of the cluster"
        ) from error
    if address != _AUTO:
        _check_reachable(address)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        try:
            with _keep_signal_handlers():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise EncodeError(
                f"--ray {address} finds no Ray cluster; start one with `ray start --head`, or name its head (host:port)"
            ) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise EncodeError(_short_reason(address, str(error))) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise EncodeError(
            f"--ray {address} finds no Ray cluster ({error}); check that its head runs there (`ray status`), "
            "and that no firewall blocks it"
        ) from error


def _short_reason(address: str, text: str) -> str:
    """Condense Ray's multi-line error message into one sentence."""
    if "ersion mismatch" in text:
        versions = re.findall(r"(?:Ray|Python): (\S+)", text)
        theirs, ours = versions[:2], versions[2:4]
        if len(ours) == 2:
            return (
                f"the Ray cluster at {address} runs Ray {theirs[0]} on Python {theirs[1]}, and here is Ray {ours[0]} "
                f"on Python {ours[1]}; install the same on all machines"
            )
    if "none of these match this node" in text or "node_ip_address.json" in text:
        return (
            f"this machine is not part of the Ray cluster at {address}; let it join with `ray start --address "
            f"{address}` (with --num-cpus 0 if it should do no work), or run this on one that is"
        )
    return f"--ray {address} cannot be used: {' '.join(text.split())[:500]}"


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the SIGTERM handler that `ray.init` replaces, so that SIGTERM still ends an encode like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
