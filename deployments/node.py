"""The child of `deployments.serve`: a Ray of its own on this machine, with the gateway on it."""

from __future__ import annotations

import asyncio
import ctypes
import http.client
import logging
import os
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from types import FrameType

import ray
from ray import serve

from deployments.app import build
from deployments.flags import STOP
from orqen_ray.config import Settings, load_settings
from orqen_ray.errors import GatewayError
from orqen_ray.logs import configure_logs
from orqen_ray.service import prepare

APPLICATION = "orqen"
CANNOT_START = 2
READY_WITHIN_S = 60.0
PR_SET_PDEATHSIG = 1

READY = """
Orqen-Ray serves on {url}  (started in {seconds:.1f} s)

  OpenAI SDK      base_url="{url}/v1"
  Anthropic SDK   base_url="{url}"
  boto3           endpoint_url="{url}"
"""
NEW_KEY = "\nAdmin key, shown this once: {key}"


def main(watcher_pid: int) -> int:
    """Start, say so, wait for `STOP`, stop. Whatever fails, Serve and Ray are shut down on the way out."""
    started = time.monotonic()
    stop_with_watcher(watcher_pid)
    settings = load_settings()
    configure_logs(**settings.logs.model_dump())
    try:
        key = asyncio.run(prepare(settings))
    except (GatewayError, ValueError, OSError) as error:
        print(f"Cannot start: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return CANNOT_START
    if key:  # at once: it cannot be shown again, whatever happens next
        say(NEW_KEY.format(key=key))
    host = "127.0.0.1" if settings.server.host in ("0.0.0.0", "::") else settings.server.host
    url = f"http://{host}:{settings.server.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        start_ray(settings)
        serve.run(build(settings), name=APPLICATION, route_prefix="/")
        wait_until_ready(settings)
        signal.signal(STOP, _drain)
        say(READY.format(url=url, seconds=time.monotonic() - started))
        if host != settings.server.host:
            say("It listens on every interface: docs/deploy.md says which ports to close, and to put TLS before it.")
        while True:
            signal.pause()
    finally:
        signal.signal(STOP, signal.SIG_IGN)
        stop_ray()


def start_ray(settings: Settings) -> None:
    """Ray and Serve on loopback, without a dashboard; on its own even where another Ray runs."""
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=True,
        logging_level=logging.ERROR,
        namespace=APPLICATION,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ.get("ORQEN_PRIVATE_DIR"),
    )
    serve.start(
        http_options={"host": settings.server.host, "port": settings.server.port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )


def stop_ray() -> None:
    """Let Serve drain and stop. Ray reports the intended end of its own actors as failures: those are not shown."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        if ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def wait_until_ready(settings: Settings) -> None:
    """Poll `/readyz` through the front door: HAProxy learns of a replica a moment after Serve does."""
    deadline = time.monotonic() + READY_WITHIN_S
    answer = "no answer"
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection(settings.server.host, settings.server.port, timeout=5)
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            answer = f"{response.status} {response.read(200)!r}"
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            answer = str(error)
        time.sleep(0.05)
    raise TimeoutError(f"/readyz was not 200 within {READY_WITHIN_S:g} s: {answer}")


def stop_with_watcher(watcher_pid: int) -> None:
    """Be told to stop when the watcher dies without a word (Linux)."""
    signal.signal(STOP, _leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, STOP, 0, 0, 0)
    if os.getppid() != watcher_pid:
        raise SystemExit(1)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """A start that is broken off has nothing to drain, and Ray may hang then: the watcher ends the rest."""
    os._exit(0)


def _drain(signal_number: int, frame: FrameType | None) -> None:
    signal.signal(STOP, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
