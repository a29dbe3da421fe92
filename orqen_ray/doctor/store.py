"""Checks of what the gateway keeps: the database, the secret key, keys, credentials, traces, disk space."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from orqen_ray.config import Settings, load_secrets
from orqen_ray.doctor.report import Finding, failed, ok, warning
from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.cipher import Cipher, load_cipher
from orqen_ray.store.database import Database
from orqen_ray.store.database_url import sqlite_path
from orqen_ray.store.health import inspect_database
from orqen_ray.store.keys import Keys
from orqen_ray.store.rate_limits import try_redis
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.traces.location import local_directory, spool_directory

_SLOW_MS = 100.0
_CLOCK_WARNING_S, _CLOCK_FAILED_S = 30.0, 300.0
_LOW_BYTES, _FULL_BYTES = 1 << 30, 100 << 20


async def check_database(settings: Settings) -> list[Finding]:
    path = sqlite_path(settings.storage.database_url)
    if path is not None and not path.exists():
        return [warning("database", f"{path} does not exist yet", "the gateway makes it at its first start")]
    database = Database(settings.storage.database_url)
    try:
        health = await inspect_database(database)
    except StoreUnavailable as error:
        return [failed("database", _why(error), "see storage.database_url, the server or the file and its owner")]
    finally:
        await database.aclose()
    findings = []
    if health.revision != health.newest_revision:
        at = health.revision or "no revision"
        findings.append(
            warning("database", f"its tables are at {at}, this version's at {health.newest_revision}",
                    "start the gateway or run `orqen keys list`: both bring them up to date")
        )  # fmt: skip
    if health.not_writable is not None:
        findings.append(
            failed("database", f"it can be read but not written: {health.not_writable}",
                   "end what holds it, give the gateway's user the right to write, or name the primary server")
        )  # fmt: skip
    if health.latency_ms > _SLOW_MS:
        findings.append(
            warning(
                "database", f"a look-up takes {health.latency_ms:.0f} ms", "see what keeps it busy, or move it nearer"
            )
        )
    if not findings:
        findings.append(ok("database", f"answers, is up to date and can be written ({health.latency_ms:.1f} ms)"))
    if health.clock_offset_s is not None:
        findings.append(clock_finding("the database's", health.clock_offset_s))
    return findings


async def check_redis(settings: Settings) -> list[Finding]:
    """Only where one is configured."""
    if settings.storage.redis_url is None:
        return []
    try:
        took_ms = await try_redis(settings.storage.redis_url)
    except StoreUnavailable as error:
        advice = "start it, or mend the URL; until then each process counts requests for itself"
        return [failed("redis", error.message, advice)]
    return [ok("redis", f"counts a request in {took_ms:.1f} ms")]


def clock_finding(whose: str, offset_s: float) -> Finding:
    """Args: offset_s: how far this machine's clock is ahead of the other one."""
    far = f"this machine's clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} {whose}"
    cure = "set it by NTP (`timedatectl set-ntp true`): AWS refuses signatures from 5 minutes on"
    if abs(offset_s) >= _CLOCK_FAILED_S:
        return failed("clock", far, cure)
    if abs(offset_s) >= _CLOCK_WARNING_S:
        return warning("clock", far, cure)
    return ok("clock", f"agrees with {whose}")


def existing_cipher(settings: Settings) -> Cipher | None:
    """The installation's cipher; None where no key was made yet: looking must not make one. Blocking.

    Raises:
        StoreUnavailable: there is a key, and it cannot be used.
    """
    secret = load_secrets().secret_key
    path = sqlite_path(settings.storage.database_url)
    if secret is None and path is not None and not path.with_name("secret.key").exists():
        return None
    return load_cipher(settings.storage.database_url, secret.get_secret_value() if secret else None)


async def check_credentials(settings: Settings) -> list[Finding]:
    """The secret key, and that it opens every stored credential."""
    try:
        cipher = await asyncio.to_thread(existing_cipher, settings)
    except StoreUnavailable as error:
        return [failed("secret key", error.message, "until then no stored credential can be used")]
    database = Database(settings.storage.database_url)
    try:
        if not _there(settings):
            return [ok("secret key", "none is needed yet")]
        # Any cipher will do to learn which providers have a row.
        secrets = ProviderSecrets(database, cipher or Cipher("x" * 32))
        names = sorted(await secrets.names())
        if cipher is None:
            if not names:
                return [ok("secret key", "none yet; it is made with the first start")]
            return [
                failed("secret key", f"lost, and with it the stored credentials of {', '.join(names)}",
                       "set ORQEN_SECRET_KEY or restore the file secret.key, or connect these providers again")
            ]  # fmt: skip
        lost = await secrets.lost()
        broken = [provider if label == "default" else f"{provider} ({label})" for provider, label in lost]
    except StoreUnavailable:
        return [warning("credentials", "not checked: the database cannot be read", "mend the database first")]
    finally:
        await database.aclose()
    if broken:
        advice = f"set ORQEN_SECRET_KEY as it was, or run `orqen providers connect {lost[0][0]}` again"
        return [failed("credentials", f"the secret key does not open those of {', '.join(broken)}", advice)]
    return [ok("credentials", f"the secret key opens all of them ({len(names)} stored)")]


async def check_keys(settings: Settings) -> list[Finding]:
    if not _there(settings):
        return [warning("keys", "there are none yet", "the first start prints one; or set ORQEN_BOOTSTRAP_KEY")]
    database = Database(settings.storage.database_url)
    try:
        now = datetime.now(UTC)
        keys = await Keys(database).list()
        active = [key for key in keys if not key.revoked_at and (key.expires_at is None or key.expires_at > now)]
    except StoreUnavailable:
        return [warning("keys", "not checked: the database cannot be read", "mend the database first")]
    finally:
        await database.aclose()
    if not active:
        return [failed("keys", "no key is active, so every call is answered 401", "orqen keys create --admin NAME")]
    admins = sum(key.is_admin for key in active)
    if not admins:
        return [warning("keys", "no active key is an admin's", "orqen keys create --admin NAME, to read /metrics")]
    return [ok("keys", f"{len(active)} active, {admins} of them admin")]


async def check_disk(settings: Settings) -> list[Finding]:
    """That traces can be written, and that there is room for them and for the database."""
    return await asyncio.to_thread(_check_disk, settings)


def _check_disk(settings: Settings) -> list[Finding]:
    storage = settings.storage
    try:
        log = local_directory(storage.traces_uri)
        folders = {"spool": spool_directory(storage.traces_uri, storage.traces_spool_dir)}
    except ValueError as error:
        return [failed("traces", str(error), "write a folder that the gateway's user may write to")]
    if log is not None:
        folders["traces"] = log
    findings: list[Finding] = []
    for what, folder in folders.items():
        try:
            with tempfile.NamedTemporaryFile(dir=_nearest(folder), prefix=".doctor-"):
                pass
            findings.append(ok(what, f"{folder} can be written"))
        except OSError as error:
            cure = f"mend storage.traces_{'uri' if what == 'traces' else 'spool_dir'}"
            findings.append(failed(what, f"{folder} cannot be written: {error.strerror}", cure))
    if (database := sqlite_path(settings.storage.database_url)) is not None:
        folders["database"] = database.parent
    return [*findings, *_space(folders)]


def _space(folders: dict[str, Path]) -> Sequence[Finding]:
    findings = []
    for what, folder in folders.items():
        try:
            free_bytes = shutil.disk_usage(_nearest(folder)).free
        except OSError:
            continue
        if free_bytes < _LOW_BYTES:
            kind = failed if free_bytes < _FULL_BYTES else warning
            findings.append(kind("disk", f"{free_bytes >> 20} MiB are free for {what}", f"make room below {folder}"))
    return findings or [ok("disk", "there is room for traces and database")]


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists: the rest is made at start."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _there(settings: Settings) -> bool:
    path = sqlite_path(settings.storage.database_url)
    return path is None or path.exists()


def _why(error: StoreUnavailable) -> str:
    """The driver's own words, which only this report shows: it runs where the gateway does. Never the URL."""
    cause = error.__cause__
    if cause is None:
        return error.message
    words = str(getattr(cause, "orig", None) or cause).splitlines() or [type(cause).__name__]
    return f"{error.message} ({words[0][:200]})"
