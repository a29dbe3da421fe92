"""Checks of the machine: the gateway's port, open listeners, file descriptors, versions."""

from __future__ import annotations

import asyncio
import http.client
import resource
import socket
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version

import psutil

from orqen_ray.config import Settings
from orqen_ray.doctor.report import Finding, failed, ok, warning

_HTTP_TIMEOUT_S = 5.0
# A replica takes 1000 requests at a time, and each needs a caller's and a provider's connection.
_WANTED_FILES = 4096
_CHECKED_RAY = "2.60."
_WILDCARDS = frozenset({"0.0.0.0", "::", "*"})
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_OURS = ("haproxy", "raylet", "gcs_server", "ray::", "deployments.", "orqen_ray", "/ray/")


async def check_port(settings: Settings) -> list[Finding]:
    """Free, or answered by a gateway that is ready."""
    return [await asyncio.to_thread(_check_port, settings.server.host, settings.server.port)]


def _check_port(host: str, port: int) -> Finding:
    if port == 0:
        return ok("port", "any free one will be taken")
    where, answers = f"{host}:{port}", {}
    try:
        for path in ("/healthz", "/readyz"):
            with closing(http.client.HTTPConnection(_ANY.get(host, host), port, timeout=_HTTP_TIMEOUT_S)) as connection:
                connection.request("GET", path)
                answer = connection.getresponse()
                answers[path] = answer.status, answer.read(200)
    except ConnectionRefusedError:
        return _bindable(host, port)
    except (OSError, http.client.HTTPException):
        advice = "end that program, or set ORQEN_PORT to another port"
        return failed("port", f"{where} is taken, and what listens there does not answer as a gateway", advice)
    if answers["/healthz"][0] != 200 or b"status" not in answers["/healthz"][1]:
        return failed("port", f"{where} is taken by another program", "end it, or set ORQEN_PORT to another port")
    if answers["/readyz"][0] != 200:
        return failed("port", f"a gateway answers on {where}, and is not ready", "see its log, and the other checks")
    return ok("port", f"a gateway answers on {where}, and is ready")


def _bindable(host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = "set ORQEN_HOST to an address of this machine, ORQEN_PORT to a free port"
            return failed("port", f"{host}:{port} cannot be listened on: {error.strerror}", advice)
    return ok("port", f"{host}:{port} is free: no gateway runs there")


async def check_listeners() -> list[Finding]:
    """Which of the gateway's, Ray's and HAProxy's listeners other machines can reach."""
    open_ports = await asyncio.to_thread(lambda: _ports_of_all_interfaces(_listeners()))
    if not open_ports:
        return [ok("listeners", "none of the gateway's, Ray's or HAProxy's is on all interfaces")]
    named = "; ".join(f"{process}: {', '.join(map(str, sorted(ports)))}" for process, ports in open_ports.items())
    advice = "close all but the gateway's own to other machines: docs/deploy.md, Ports, says which and how"
    return [warning("listeners", f"on all interfaces are {named}", advice)]


def _listeners() -> Iterator[tuple[str, int, str]]:
    """Address, port and process of what listens here, as far as this user may see it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.laddr and each.pid:
            try:
                process = psutil.Process(each.pid)
                command = " ".join(process.cmdline())
                name = command.split(" ")[0] if command.startswith("ray::") else process.name()
            except psutil.Error:
                continue
            if any(mark in command or mark in name for mark in _OURS):
                yield each.laddr.ip, each.laddr.port, name


def _ports_of_all_interfaces(listeners: Iterable[tuple[str, int, str]]) -> dict[str, set[int]]:
    found: defaultdict[str, set[int]] = defaultdict(set)
    for address, port, process in listeners:
        if address in _WILDCARDS:
            found[process].add(port)
    return dict(found)


async def check_limits() -> list[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _WANTED_FILES:
        cure = f"`ulimit -n {_WANTED_FILES}` before the start, or LimitNOFILE= of the service"
        return [warning("files", f"a process started from here may open {files} files and connections", cure)]
    return [ok("files", f"a process started from here may open {files} files and connections")]


async def check_versions() -> list[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        ray = version("ray")
    except PackageNotFoundError:
        return [failed("versions", f"Python {python}, and no Ray", "pip install -c constraints.txt .")]
    if not ray.startswith(_CHECKED_RAY):
        advice = "pip install -c constraints.txt . brings the version that the gateway is tested with"
        return [warning("versions", f"Python {python}, Ray {ray}; tested with Ray {_CHECKED_RAY}x", advice)]
    return [ok("versions", f"Python {python}, Ray {ray}")]
