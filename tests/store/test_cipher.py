"""The keys that seal: where they come from, and that several of them open."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.cipher import Cipher, KeyFile, load_cipher, write_new_key

KEY = "k" * 32

# --- The key file -----------------------------------------------------------------------------------------------


def test_the_key_file_is_made_once_for_the_owner_only(sqlite_url: str, database_path: Path) -> None:
    sealed = load_cipher(sqlite_url, None).seal(b"x")
    path = database_path.with_name("secret.key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["secret.key"]
    assert load_cipher(sqlite_url, None).open(sealed) == b"x"


def test_of_two_processes_that_make_the_key_the_first_wins(sqlite_url: str, database_path: Path) -> None:
    load_cipher(sqlite_url, None)
    path = database_path.with_name("secret.key")
    first = path.read_text()
    write_new_key(path)  # what a process does that saw no file a moment ago
    assert path.read_text() == first
    assert [file.name for file in path.parent.iterdir()] == ["secret.key"]


def test_a_key_file_that_others_can_read_is_refused(sqlite_url: str, database_path: Path) -> None:
    load_cipher(sqlite_url, None)
    os.chmod(database_path.with_name("secret.key"), 0o640)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        load_cipher(sqlite_url, None)


def test_whoever_reads_the_file_while_it_changes_sees_all_of_one_state(tmp_path: Path) -> None:
    key_file, states = KeyFile(tmp_path / "secret.key"), {("a" * 64,), ("b" * 64, "a" * 64), ("b" * 64,)}
    key_file.write(["a" * 64])
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(key_file.read())

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read)
        for _ in range(300):
            for state in sorted(states):
                key_file.write(state)
        done.set()
        reading.result()
    assert seen <= states and len(seen) > 1


def test_the_variable_wins_over_the_file(sqlite_url: str, database_path: Path) -> None:
    assert Cipher(KEY).open(load_cipher(sqlite_url, KEY).seal(b"x")) == b"x"
    assert not database_path.with_name("secret.key").exists()


def test_a_short_key_is_refused_with_a_way_to_make_one(sqlite_url: str) -> None:
    with pytest.raises(StoreUnavailable, match="32 characters; `openssl rand -hex 32`"):
        load_cipher(sqlite_url, "short")


def test_a_database_without_a_folder_needs_the_variable() -> None:
    with pytest.raises(StoreUnavailable, match="set ORQEN_SECRET_KEY"):
        load_cipher("postgresql+asyncpg://host/orqen", None)


def test_processes_that_start_at_once_agree_on_one_key(sqlite_url: str) -> None:
    program = "import sys; from orqen_ray.store.cipher import load_cipher; sys.stdin.readline(); "
    program += "print(load_cipher(sys.argv[1], None).seal(b'x'))"
    command = [sys.executable, "-c", program, sqlite_url]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    sealed = [process.communicate("go\n", timeout=60)[0].strip() for process in processes]
    cipher = load_cipher(sqlite_url, None)
    assert [cipher.open(text) for text in sealed] == [b"x"] * 2
