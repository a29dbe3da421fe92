"""A PostgreSQL and a Redis of the tests' own: started on a free port, stopped, frozen, killed and started again."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import BinaryIO

import asyncpg
import psutil
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
PASSWORD = "p%w-of/the@tests"
PR_SET_PDEATHSIG = 1
# "Parent" is the thread that started a process, so it is one that stays.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="servers")


class Server(ABC):
    """A server in a folder of its own. `start` after `stop` or `kill` brings the same data back on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def start(self) -> None:
        """Start it unless it runs already, and wait until it answers."""
        if self._process is not None:
            return
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = _STARTER.submit(self._popen, output).result()
        deadline_s = time.monotonic() + START_WITHIN_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError(f"{self.command()[0]} did not start:\n{log.read_text()}")
            time.sleep(0.01)

    def _popen(self, output: BinaryIO) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(),
            stdout=output,
            stderr=output,
            cwd=self.folder,
            user=_other_user(),
            preexec_fn=_die_with_parent,
        )

    def stop(self) -> None:
        """End it in good order, its clients' connections included."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash would, whatever it is doing."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it take connections and answer nothing, as a host that has gone away."""
        self._each(psutil.Process.suspend)

    def thaw(self) -> None:
        self._each(psutil.Process.resume)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        family = self._family()
        self._each(psutil.Process.resume)
        self._process.send_signal(number)
        self._process.wait(timeout=STOP_WITHIN_S)
        psutil.wait_procs(family, timeout=STOP_WITHIN_S)
        self._process = None

    def _each(self, work: Callable[[psutil.Process], None]) -> None:
        for process in self._family():
            with suppress(psutil.NoSuchProcess):  # a session that has just ended
                work(process)

    def _family(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]


class Postgres(Server):
    """A cluster without fsync: it outlasts being killed, though not a power cut. TLS with a certificate of its own."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        super().__init__(folder)
        self._binaries = binaries
        self._numbers = itertools.count(1)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._initialize(secret)
        self.certificate = _make_certificate(folder / "data")

    def _initialize(self, secret: Path) -> None:
        command = [str(self._binaries / "initdb"), "-D", "data", "-U", "orqen", "-A", "scram-sha-256", "-N"]
        command += [f"--pwfile={secret}", "-E", "UTF8", "--locale=C"]
        subprocess.run(command, cwd=self.folder, user=_other_user(), check=True, stdout=subprocess.DEVNULL)

    def command(self) -> list[str]:
        options = {"fsync": "off", "full_page_writes": "off", "ssl": "on"}
        options |= {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        options |= {"shared_buffers": "16MB", "max_connections": "60", "autovacuum": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", "data", *settings]

    def answers(self) -> bool:
        try:
            asyncio.run(self._execute("SELECT 1"))
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{next(self._numbers)}"
        asyncio.run(self._execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy"))
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+asyncpg://orqen:p%25w-of%2Fthe%40tests@127.0.0.1:{self.port}/{name}"

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="orqen", password=PASSWORD, database="postgres", ssl=False
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


class Redis(Server):
    """A Redis that keeps nothing on the disk."""

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD.replace('%', '%25').replace('/', '%2F').replace('@', '%40')}@127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", PASSWORD]
        return [str(shutil.which("redis-server")), "--port", str(self.port), *options]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD, socket_timeout=1)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = binaries[-1] if binaries else shutil.which("initdb")
    if found is None:
        _not_here("PostgreSQL (the package postgresql)")
    with _folder() as folder:
        server = Postgres(folder, Path(str(found)).parent)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """Running at the start of each test, whatever the one before has done to it."""
    postgres_server.start()
    _collect()
    yield postgres_server
    postgres_server.thaw()
    _collect()


def _collect() -> None:
    """Drop the connections that PostgreSQL refused.

    asyncpg does not wait until the server has closed one that spoke TLS, so a loop that ends at once leaves it open;
    the collector would warn of that in the midst of another test.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def redis_session() -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        _not_here("Redis (the package redis-server)")
    with _folder() as folder:
        server = Redis(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_server(redis_session: Redis) -> Iterator[Redis]:
    """Running and empty at the start of each test."""
    redis_session.start()
    with redis_session.client() as client:
        client.flushall()
    yield redis_session
    redis_session.thaw()


def _not_here(what: str) -> None:
    """Skip, except in continuous integration, which has to bring everything along."""
    message = f"{what} is not installed on this machine"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


class _folder:
    """A short-named folder that the servers' user owns: a socket's path is short, and pytest's own is closed to it."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="orqen-"))
        if (user := _other_user()) is not None:
            shutil.chown(self.path, user)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _other_user() -> str | None:
    """Whom to start a server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _die_with_parent() -> None:
    """In the child, after it has become the other user: end at once should the tests be killed (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _make_certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 where PostgreSQL looks for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for file, content in (("server.crt", certificate.public_bytes(pem)), ("server.key", private)):
        path = folder / file
        path.write_bytes(content)
        path.chmod(0o600)
        if (user := _other_user()) is not None:
            shutil.chown(path, user)
    return folder / "server.crt"
