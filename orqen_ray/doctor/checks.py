"""The list of `orqen doctor`'s checks: one more is one more line."""

from __future__ import annotations

from functools import partial

from orqen_ray.config import Settings, SettingsError, load_settings, read_environment
from orqen_ray.doctor import machine, providers, store
from orqen_ray.doctor.report import Check, Finding, failed, ok, run_checks
from orqen_ray.errors import StoreUnavailable
from orqen_ray.providers.catalog import load_catalog
from orqen_ray.store.database_url import sqlite_path


async def examine(*, ask_providers: bool = True) -> list[Finding]:
    """All findings, the settings' first; without usable settings only what needs none."""
    settings, of_settings = _read_settings()
    checks: dict[str, Check] = {}
    if settings is not None:
        checks |= {
            "database": partial(store.check_database, settings),
            "credentials": partial(store.check_credentials, settings),
            "keys": partial(store.check_keys, settings),
            "traces": partial(store.check_disk, settings),
            "redis": partial(store.check_redis, settings),
        }
        if ask_providers:
            checks["providers"] = partial(providers.check_providers, settings)
        checks["port"] = partial(machine.check_port, settings)
    checks |= {
        "listeners": machine.check_listeners,
        "files": machine.check_limits,
        "versions": machine.check_versions,
    }
    return [of_settings, *await run_checks(checks)]


def _read_settings() -> tuple[Settings | None, Finding]:
    place = read_environment().get("ORQEN_CONFIG") or "no file: all defaults"
    try:
        settings = load_settings()
        load_catalog(settings.operator_rows())
        sqlite_path(settings.storage.database_url)
    except (SettingsError, StoreUnavailable, ValueError) as error:
        problem = "; ".join(str(error).splitlines())
        return None, failed("settings", problem, "docs/settings.md lists every key; ORQEN_CONFIG names the file")
    return settings, ok("settings", place)
