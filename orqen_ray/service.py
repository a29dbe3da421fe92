"""Joins the parts into one running gateway, for whoever serves it: a Ray Serve replica, a test, the command line."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from orqen_ray.attempts import RetryPolicy
from orqen_ray.config import VARIABLES, Settings, load_secrets, read_environment
from orqen_ray.encoders.opening import open_embedder, open_reranker
from orqen_ray.encoders.protocol import Embedder, Reranker
from orqen_ray.errors import BadRequest, StoreUnavailable
from orqen_ray.fallbacks import check_fallbacks
from orqen_ray.gateway import Gateway
from orqen_ray.metrics import Metrics
from orqen_ray.optimizer import Optimizer, open_optimizer
from orqen_ray.providers.breaker import BreakerPolicy
from orqen_ray.providers.catalog import Catalog, load_catalog
from orqen_ray.providers.credentials import EnvironmentCredentials, LayeredCredentials
from orqen_ray.providers.forward import Forwarder, Timeouts
from orqen_ray.store.authenticator import KeyCache
from orqen_ray.store.budgets import Budgets
from orqen_ray.store.cipher import Cipher, load_cipher
from orqen_ray.store.database import Database
from orqen_ray.store.keys import KeyRecord, Keys
from orqen_ray.store.rate_limits import RateLimits
from orqen_ray.store.secrets import ProviderSecrets
from orqen_ray.store.token_counts import TokenCounts
from orqen_ray.traces.writer import SpoolLimits, TraceWriter
from orqen_ray.types import Upstream

_KEY_TTL_S = 4.0  # a revocation must take effect within 5 s
_READY_WITHIN_S = 1.0


@dataclass(slots=True)
class Service:
    """Everything that one process needs to answer requests."""

    settings: Settings
    catalog: Catalog
    database: Database
    keys: Keys
    gateway: Gateway
    metrics: Metrics
    embedder: Embedder | None
    reranker: Reranker | None
    _key_cache: KeyCache
    _rate_limits: RateLimits
    _budgets: Budgets
    _traces: TraceWriter
    _optimizer: Optimizer
    _forwarder: Forwarder | None

    @property
    def max_body_bytes(self) -> int:
        return self.settings.limits.max_body_bytes

    async def authenticate(self, secret: str) -> KeyRecord:
        """The key that `secret` opens.

        Raises:
            Unauthenticated: none, or an unknown, expired or revoked one.
        """
        return await self._key_cache.authenticate(secret)

    async def admit(self, key: KeyRecord) -> None:
        """Count a request of `key` against its limits.

        Raises:
            Overloaded: its minute is full or a budget is spent.
        """
        await self._budgets.check(key)
        await self._rate_limits.check(key)

    async def ready(self) -> bool:
        """Whether a request could be served now: the way to the providers answers, and so does the store.

        While the store is away, a process that knows keys still serves their callers: an outage of the database must
        not take every replica out of rotation at once.
        """
        await self.gateway.upstream.connected()
        if self._key_cache.can_serve() and not self.database.reads.may_ask():
            return True
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await self.keys.count()
        except (StoreUnavailable, TimeoutError):
            if not self._key_cache.can_serve():
                raise
        return True

    async def aclose(self) -> None:
        """Write what is pending and let go of every connection."""
        await self._traces.aclose()
        await self._optimizer.aclose()
        await self._budgets.aclose()
        await self._rate_limits.aclose()
        if self._forwarder is not None:
            await self._forwarder.aclose()
        await self.database.aclose()


async def open_service(
    settings: Settings,
    upstream: Upstream | None = None,
    *,
    embedder: Embedder | None = None,
    reranker: Reranker | None = None,
    ship_traces: bool = True,
) -> Service:
    """Open the store, the trace log and, without `upstream`, a forwarder in this process.

    Args:
        embedder, reranker: encoders elsewhere. Without them, those of the settings begin to open here, where tools are
            routed.
        ship_traces: else the rows stay in the spool, from where readers on this machine have them as well.
    """
    catalog = load_catalog(settings.operator_rows())
    check_fallbacks(catalog, settings.fallbacks)
    metrics = open_metrics("ingress")
    database = await open_database(settings, metrics)
    if settings.optimization.tools:
        embedder = embedder or open_embedder(settings.encoders)
        reranker = reranker or open_reranker(settings.encoders)
    forwarder = None
    if upstream is None:
        upstream = forwarder = await open_forwarder(settings, database, catalog, metrics)
    keys = Keys(database)
    await _ensure_bootstrap_key(keys)
    traces = _trace_writer(settings, metrics, ship=ship_traces, catalog=catalog)
    await traces.start()
    retry = RetryPolicy(**settings.retries.model_dump(), total_s=settings.timeouts.total_s)
    budgets = Budgets(TokenCounts(database), metrics)
    budgets.start()
    optimizer = await open_optimizer(settings, database, metrics, embedder, reranker)
    return Service(
        settings=settings,
        catalog=catalog,
        database=database,
        keys=keys,
        gateway=Gateway(
            catalog, upstream, traces, retry, settings.fallbacks, metrics, budgets.spend, optimizer.planning
        ),
        metrics=metrics,
        embedder=embedder,
        reranker=reranker,
        _key_cache=KeyCache(keys, database.reads, _KEY_TTL_S, settings.storage.outage_grace_s),
        _rate_limits=RateLimits(settings.storage.redis_url, metrics),
        _budgets=budgets,
        _traces=traces,
        _optimizer=optimizer,
        _forwarder=forwarder,
    )


def open_metrics(role: Literal["ingress", "forwarder"]) -> Metrics:
    """The figures of this process, to be opened once in it; of all processes of the node where they share a folder."""
    metrics = Metrics(read_environment().get("PROMETHEUS_MULTIPROC_DIR"))
    metrics.processes.labels(role).set(1)
    return metrics


async def prepare(settings: Settings) -> str | None:
    """Make the store ready for a first start, before there are replicas that would each do so.

    Returns:
        The secret of the first admin key, to be shown once, when the store held no key and the environment brings none.

    Raises:
        ValueError, GatewayError, OSError: what stands in the way of a start, and how to mend it.
    """
    catalog = load_catalog(settings.operator_rows())
    check_fallbacks(catalog, settings.fallbacks)
    traces = _trace_writer(settings, Metrics(), ship=False, catalog=catalog)
    await traces.start()
    await traces.aclose()
    database = await open_database(settings)
    try:
        await asyncio.to_thread(_cipher, settings)
        keys = Keys(database)
        await _ensure_bootstrap_key(keys)
        return None if await keys.count() else (await keys.create("admin", admin=True))[1]
    finally:
        await database.aclose()


async def _ensure_bootstrap_key(keys: Keys) -> None:
    if secret := load_secrets().bootstrap_key:
        try:
            await keys.ensure(secret.get_secret_value(), "bootstrap", admin=True)
        except BadRequest as error:
            raise BadRequest(f"ORQEN_BOOTSTRAP_KEY: {error}") from None


async def open_database(settings: Settings, metrics: Metrics | None = None) -> Database:
    """The store, brought to its newest shape."""
    database = Database(settings.storage.database_url, metrics)
    await database.migrate()
    return database


async def open_forwarder(
    settings: Settings, database: Database, catalog: Catalog | None = None, metrics: Metrics | None = None
) -> Forwarder:
    """The way to the providers, with the secrets of the store first and those of the environment after them."""
    catalog = catalog or load_catalog(settings.operator_rows())
    cipher = await asyncio.to_thread(_cipher, settings)
    stored = ProviderSecrets(database, cipher, _KEY_TTL_S, settings.storage.outage_grace_s)
    credentials = LayeredCredentials(stored, EnvironmentCredentials(catalog, read_environment()))
    return Forwarder(
        catalog,
        credentials,
        Timeouts(**settings.timeouts.model_dump()),
        BreakerPolicy(**settings.circuit_breaker.model_dump()),
        metrics=metrics,
    )


def _trace_writer(settings: Settings, metrics: Metrics, *, ship: bool, catalog: Catalog) -> TraceWriter:
    storage = settings.storage
    # The shipper needs AWS's own variables for S3, and none of the gateway's or a provider's secrets.
    kept_from_it = {*VARIABLES, "RAY_AUTH_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"}
    kept_from_it.update(*(row.api_key_env for row in catalog.providers.values()))
    return TraceWriter(
        storage.traces_uri,
        storage.traces_spool_dir,
        retention_days=storage.traces_retention_days,
        limits=SpoolLimits(max_spool_bytes=int(storage.traces_spool_max_mib * 2**20)),
        ship=ship,
        metrics=metrics,
        shipper_environment={name: value for name, value in read_environment().items() if name not in kept_from_it},
    )


def _cipher(settings: Settings) -> Cipher:
    secret = load_secrets().secret_key
    return load_cipher(settings.storage.database_url, secret.get_secret_value() if secret else None)
