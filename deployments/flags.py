"""The environment variables that Ray and Ray Serve 2.60 read at import: they must be set before either is imported."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# The watcher's word to its child. Not SIGTERM: Ray prints a C++ stack trace for that one.
STOP = signal.SIGUSR1

# Needed by the gateway in any cluster; `deployments.app` gives them to its replicas.
REPLICA_FLAGS: Mapping[str, str] = {
    # a 32 MiB body crosses a handle in one message; the default limit is 4 MiB
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 << 20),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.edge:middlewares",
}

# Client -> HAProxy -> ingress replica, user code on the replica's own loop. On a cluster these belong on all nodes.
FAST_PATH: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # What RAY_SERVE_THROUGHPUT_OPTIMIZED=1 stands for, without its banner and without losing what replicas log.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "900",  # as long as the longest stream: a reload ends the old worker then
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "60",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # parsed in Python for each request; the gateway counts its own
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# One machine, one gateway: nothing else balances load, so nothing waits for it to notice a replica that goes.
ONE_MACHINE: Mapping[str, str] = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    "RAY_worker_niceness": "0",  # Ray's 15 is for batch work: whatever else runs here would go before every request
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "0",  # else of lines that differ in figures only, one is printed
}

SIDE_PORTS = range(20_000, 30_000)
HAPROXY = Path(__file__).with_name("haproxy.sh")
"""HAProxy as it must be started; the file says why."""

PORT_FLAGS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "AUTOSCALER_METRIC_PORT",
    "DASHBOARD_METRIC_PORT",
)
HAPROXY_FILES: Mapping[str, str] = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",  # mode 666: only the private directory around it protects it
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}


def one_machine_flags(private_dir: Path, port: int) -> dict[str, str]:
    """Flags for a gateway of its own on `port`: free side ports, files in `private_dir`, a Ray token for this run."""
    ports = dict(zip(PORT_FLAGS, map(str, free_ports(len(PORT_FLAGS), besides=port)), strict=True))
    files = {flag: str(private_dir / name) for flag, name in HAPROXY_FILES.items()}
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    haproxy = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY), "ORQEN_PYTHON": sys.executable}
    return {**REPLICA_FLAGS, **FAST_PATH, **ONE_MACHINE, **ports, **files, **token, **haproxy}


def metrics_directory(session: str) -> Path:
    """Where the replicas of one node keep their figures: in the private directory of `make serve`, else a place of the
    user's for this run of Ray, the same on each node. A replica makes it.
    """
    if private_dir := os.environ.get("ORQEN_PRIVATE_DIR"):
        return Path(private_dir, "metrics")
    return Path(tempfile.gettempdir(), f"orqen-metrics-{os.getuid()}-{session}")


def free_ports(count: int, *, besides: int = 0) -> list[int]:
    """`count` different ports, none of them `besides`, that nothing listens on, on any interface.

    Below the range from which the system, and so Ray, takes ports in the meantime.
    """
    found: list[int] = []
    for port in random.sample(SIDE_PORTS, len(SIDE_PORTS)):
        if port == besides:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} ports from {SIDE_PORTS.start} to {SIDE_PORTS.stop} are free")
