"""The keys that seal credentials: from the environment or a file beside the database, several while they change."""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.database import make_private_directory
from orqen_ray.store.database_url import sqlite_path

_MIN_KEY_CHARS = 32
_MAX_REMEMBERED = 16
_MAKE_ONE = "`openssl rand -hex 32` makes one"


class Cipher:
    """Authenticated encryption (Fernet: AES-128-CBC and HMAC-SHA256) with keys derived by HKDF-SHA256.

    The first key seals, any of them opens. Keys that came from a file can be read again when they have changed.
    """

    def __init__(self, *secret_keys: str, key_file: KeyFile | None = None) -> None:
        """Args: secret_keys: one at least, each at least 32 random characters. Raises StoreUnavailable if shorter."""
        self.key_file = key_file
        self._use(secret_keys)

    def seal(self, data: bytes) -> str:
        return self._first.encrypt(data).decode()

    def open(self, sealed: str) -> bytes:
        """Raises StoreUnavailable: sealed with another key, or changed since."""
        try:
            return self._all.decrypt(sealed)
        except InvalidToken:
            raise StoreUnavailable(
                "the stored credentials were sealed with another secret key: set ORQEN_SECRET_KEY (or restore the file "
                "secret.key beside the database) as it was then, or run `orqen providers connect` again"
            ) from None

    def is_newest(self, sealed: str) -> bool:
        """Whether `sealed` is sealed with the first key."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        return True

    def reload(self) -> bool:
        """Read the key file again, if the keys came from one; blocking. True when they have changed.

        Raises:
            StoreUnavailable: the file cannot be used.
        """
        if self.key_file is None:
            return False
        before = self._secret_keys
        # Rows that were read a moment ago may still be sealed with a key that has just left the file.
        self._use(tuple(dict.fromkeys((*self.key_file.read(), *before)))[:_MAX_REMEMBERED])
        return self._secret_keys != before

    def _use(self, secret_keys: Sequence[str]) -> None:
        if not secret_keys or any(len(key) < _MIN_KEY_CHARS for key in secret_keys):
            source = "each line of secret.key" if self.key_file else "ORQEN_SECRET_KEY"
            raise StoreUnavailable(f"{source} needs at least {_MIN_KEY_CHARS} characters; {_MAKE_ONE}")
        self._secret_keys = tuple(secret_keys)
        self._all = MultiFernet([_fernet(key) for key in secret_keys])
        self._first = _fernet(secret_keys[0])


class KeyFile:
    """`secret.key`, mode 0600: one key a line, the first seals. Every method blocks.

    Raises:
        StoreUnavailable: it can be read by others, or not at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[str, ...]:
        """The keys; the file is made at first, with one."""
        try:
            make_private_directory(self._path.parent)
            if not self._path.exists():
                write_new_key(self._path)
            with self._path.open() as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise StoreUnavailable("secret.key beside the database can be read by others: `chmod 600` it")
                return tuple(line.strip() for line in file if line.strip())
        except OSError as error:
            raise StoreUnavailable(f"secret.key beside the database cannot be used: {error.strerror}") from error

    def write(self, secret_keys: Sequence[str]) -> None:
        """Replace the keys, whole or not at all, also when the machine stops in between."""
        try:
            draft = _draft(self._path, secret_keys)
            os.replace(draft, self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise StoreUnavailable(f"secret.key beside the database cannot be written: {error.strerror}") from error

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Hold off others while keys change (`exclusive`), or the change of keys while something is being sealed."""
        try:
            make_private_directory(self._path.parent)
            descriptor = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"secret.key.lock cannot be made beside the database: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)


def new_secret_key() -> str:
    return secrets.token_hex(32)


def load_cipher(database_url: str, secret_key: str | None) -> Cipher:
    """The cipher of this installation; blocking, for start-up.

    Args:
        secret_key: ORQEN_SECRET_KEY, one key or several with commas between. Without it, the file `secret.key` (mode
            0600) beside the SQLite database is used, and made at first.
    Raises:
        StoreUnavailable: a key is too short, its file can be read by others, or there is no place for one.
    """
    if secret_key is not None:
        return Cipher(*(key.strip() for key in secret_key.split(",")))
    database_path = sqlite_path(database_url)
    if database_path is None:
        raise StoreUnavailable(f"set ORQEN_SECRET_KEY: this database has no folder for a key file; {_MAKE_ONE}")
    key_file = KeyFile(database_path.with_name("secret.key"))
    return Cipher(*key_file.read(), key_file=key_file)


def write_new_key(path: Path) -> None:
    """Write a random key to `path`, whole or not at all; of two processes the first wins."""
    draft = _draft(path, [new_secret_key()])
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _fernet(secret_key: str) -> Fernet:
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"orqen-ray provider credentials v1")
    return Fernet(base64.urlsafe_b64encode(derivation.derive(secret_key.encode())))


def _draft(path: Path, secret_keys: Sequence[str]) -> Path:
    """A file beside `path`, for the owner only, whose content is on the disk."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{key}\n" for key in secret_keys)
        file.flush()
        os.fsync(descriptor)
    return draft


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
