"""Checks of the connected providers: host, clock, and credentials where asking costs nothing."""

from __future__ import annotations

import asyncio

from orqen_ray.config import Settings, read_environment
from orqen_ray.doctor.report import Finding, failed, ok, warning
from orqen_ray.doctor.store import clock_finding, existing_cipher
from orqen_ray.errors import StoreUnavailable
from orqen_ray.probe import probe
from orqen_ray.providers.catalog import Catalog, Provider, load_catalog
from orqen_ray.providers.credentials import CredentialSource, EnvironmentCredentials, LayeredCredentials
from orqen_ray.providers.forward import DEFAULT_REGION, Forwarder
from orqen_ray.providers.reachability import Reachability, reach
from orqen_ray.store.database import Database
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.types import Credentials

_CALL_TIMEOUT_S = 5.0


async def check_providers(settings: Settings) -> list[Finding]:
    """One finding for each connected provider, and one for the clock."""
    try:
        catalog = load_catalog(settings.operator_rows())
    except ValueError:
        return []  # the check of the settings says so
    database = Database(settings.storage.database_url)
    credentials = LayeredCredentials(*await _sources(settings, catalog, database))
    forwarder = Forwarder(catalog, credentials)  # knows who is connected
    try:
        names = sorted(await forwarder.connected())
        rows = [catalog.providers[name] for name in names if not catalog.providers[name].embedded]
        if not rows:
            return [warning("providers", "none is connected but the sandbox", "orqen providers connect NAME")]
        checked = await asyncio.gather(*(_check(row, catalog, credentials) for row in rows))
    finally:
        await forwarder.aclose()
        await database.aclose()
    findings = [finding for finding, _ in checked]
    offsets = {each.host: each.clock_offset_s for _, each in checked if each and each.clock_offset_s is not None}
    if offsets:
        host = max(offsets, key=lambda name: abs(offsets[name]))
        findings.append(clock_finding(f"{host}'s", offsets[host]))
    return findings


async def _sources(settings: Settings, catalog: Catalog, database: Database) -> list[CredentialSource]:
    """Where credentials are; without the store where that is broken, which another check says."""
    sources: list[CredentialSource] = [EnvironmentCredentials(catalog, read_environment())]
    try:
        cipher = await asyncio.to_thread(existing_cipher, settings)
        if cipher is not None:
            stored = ProviderSecrets(database, cipher)
            await stored.names()
            sources.insert(0, stored)
    except StoreUnavailable:
        pass
    return sources


async def _check(row: Provider, catalog: Catalog, credentials: CredentialSource) -> tuple[Finding, Reachability | None]:
    name = f"provider {row.name}"
    try:
        keys = await credentials.get(row.name)
    except StoreUnavailable:
        return failed(name, "its stored credentials cannot be opened", f"orqen providers connect {row.name}"), None
    secret = keys[0] if keys else None
    base_url = (secret.base_url if secret else None) or row.base_url
    if base_url is None:
        return failed(name, "it has no address", f"orqen providers connect {row.name} --base-url URL"), None
    region = (secret.region if secret else None) or row.region or DEFAULT_REGION
    reached = await reach(base_url.replace("{region}", region), allow_private_network=row.allow_private_network)
    if reached.problem is not None:
        cure = "see its base_url, this machine's DNS, proxy and firewall"
        return failed(name, f"{reached.host}: {reached.problem}", cure), reached
    if "models" not in row.families:
        unasked = f"{reached.host} answers; the credentials were not tried, it has no free call"
        return ok(name, unasked), reached
    names = [name if len(keys) < 2 else f"{name} ({key.label})" for key in keys] or [name]
    asked = await asyncio.gather(
        *(_ask(each, row, catalog, key) for each, key in zip(names, keys or (None,), strict=True))
    )
    return next((finding for finding in asked if finding.state != "ok"), asked[0]), reached


async def _ask(name: str, row: Provider, catalog: Catalog, secret: Credentials | None) -> Finding:
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            answer = await probe(catalog, row, secret, None)
    except TimeoutError:
        return warning(name, f"no list of models within {_CALL_TIMEOUT_S:g} s", f"orqen providers test {row.name}")
    status = answer["status"]
    if status in (401, 403):
        advice = f"store other credentials: orqen providers connect {row.name}"
        return failed(name, f"it refuses the credentials (HTTP {status})", advice)
    if status is None:
        return failed(name, answer["message"], f"orqen providers test {row.name}")
    if status >= 400:
        return warning(name, f"its list of models answers HTTP {status}", f"orqen providers test {row.name}")
    return ok(name, "answers and accepts the credentials" if row.needs_credentials else "answers")
