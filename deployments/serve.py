"""`python -m deployments.serve`: the gateway on this machine, in the foreground; when it ends, nothing of it is left.

This process only watches. Ray, Serve and HAProxy run below a child in a session of its own (`deployments.node`), so a
terminal's Ctrl-C reaches the watcher alone. The first one stops gracefully; a second one, or a stop that takes too
long, at once. The watcher adopts orphans (Linux), so whatever started a process, it can end exactly its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from deployments.flags import STOP, free_ports, one_machine_flags
from orqen_ray.config import SettingsError, load_settings

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 20.0
KILL_WITHIN_S = 10.0
CANNOT_START = 2
PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Serve until told to stop.

    Returns:
        The exit code: 0 after a stop that was asked for, 2 when the settings or the port are wrong.
    """
    try:
        server = load_settings().server
        port = server.port or free_ports(1)[0]
        require_free(server.host, port)
    except (SettingsError, OSError) as error:
        return _say(f"Cannot start: {error}", CANNOT_START)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="orqen-", dir="/tmp", ignore_cleanup_errors=True) as private_dir:
        flags = one_machine_flags(Path(private_dir), port)
        overrides = {name: os.environ[name] for name in flags if name in os.environ}
        address = {"ORQEN_HOST": server.host, "ORQEN_PORT": str(port), "ORQEN_PRIVATE_DIR": private_dir}
        return watch({**os.environ, **flags, **overrides, **address})


def watch(environment: dict[str, str]) -> int:
    """Run the child until it ends or a signal comes, then leave no descendant behind."""
    # Signals are waited for, not handled: nothing can interrupt the clean-up, and a death of the child wakes at once.
    awaited = {*STOP_SIGNALS, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*awaited, STOP})  # the child unblocks it when it can obey
    command = [sys.executable, "-m", "deployments.node", str(os.getpid())]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline: float | None = None
        while child.poll() is None:
            left_s = deadline - time.monotonic() if deadline else 3600.0
            received = signal.sigtimedwait(awaited, max(left_s, 0.0))
            if deadline and (received is None or received.si_signo != signal.SIGCHLD):
                return _say("Stopped at once.", 128 + signal.SIGKILL)
            if received and received.si_signo != signal.SIGCHLD:
                _say("Stopping; once more to stop at once.", 0)
                child.send_signal(STOP)
                deadline = time.monotonic() + GRACE_S
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    finally:
        kill_descendants()


def require_free(host: str, port: int) -> None:
    """Raise OSError, in plain words, when nothing can listen on `host:port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            advice = "set ORQEN_PORT to another one, or to 0 for any that is free"
            if error.errno == errno.EADDRNOTAVAIL:
                advice = "ORQEN_HOST must be an address of this machine, or 0.0.0.0 for all"
            raise OSError(f"{host}:{port} cannot be listened on ({error.strerror}); {advice}.") from None


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies; without Linux, those would be lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """End what is still there, again until nothing is: a dying process may start another."""
    deadline = time.monotonic() + KILL_WITHIN_S
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=1.0)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
