"""Where the secrets of providers come from, and keeping them out of what callers see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

import botocore.session
from botocore.exceptions import BotoCoreError

from orqen_ray.providers.catalog import Catalog, Provider
from orqen_ray.types import AwsCredentials, Credentials

_CHAIN_TTL_S = 60.0
_MIN_SECRET_CHARS = 8
_REDACTED = b"[redacted]"
_BEDROCK_BEARER = "AWS_BEARER_TOKEN_BEDROCK"


class CredentialSource(Protocol):
    """A place that holds secrets of providers. Both methods are called for each request: answer from memory."""

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        """The secrets of `provider` that are here, each with a label of its own, in an order that does not change."""
        ...

    async def names(self) -> frozenset[str]:
        """The providers whose secrets are here."""
        ...


class LayeredCredentials:
    """Several sources; the first that knows a provider wins."""

    def __init__(self, *sources: CredentialSource) -> None:
        self._sources = sources

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        for source in self._sources:
            if found := await source.get(provider):
                return found
        return ()

    async def names(self) -> frozenset[str]:
        return frozenset().union(*[await source.names() for source in self._sources])


class EnvironmentCredentials:
    """Secrets from environment variables, and AWS's own chain for the Bedrock rows that the operator configured.

    The label of a secret is the variable that holds it.

    Args:
        environment: the variables; this class reads no others (the chain does, in botocore).
    """

    def __init__(self, catalog: Catalog, environment: Mapping[str, str]) -> None:
        read = {name: _read_environment(row, environment) for name, row in catalog.providers.items()}
        self._fixed = {name: found for name, found in read.items() if found}
        self._chained = frozenset(
            name
            for name, row in catalog.providers.items()
            if row.auth == "sigv4" and row.configured and name not in self._fixed
        )
        self._chain = _AwsChain()

    async def get(self, provider: str) -> tuple[Credentials, ...]:
        if provider in self._chained:
            aws = await self._chain.get()
            return (Credentials(aws=aws),) if aws is not None else ()
        return self._fixed.get(provider, ())

    async def names(self) -> frozenset[str]:
        chained = self._chained if self._chained and await self._chain.get() is not None else frozenset()
        return frozenset(self._fixed) | chained


class _AwsChain:
    """Profiles, SSO, container and instance roles: botocore finds and refreshes them, in a thread.

    Only the first search is waited for: without any AWS it takes seconds. Later ones run beside the requests, once a
    minute; botocore itself renews a secret well before it expires.
    """

    def __init__(self) -> None:
        self._found: AwsCredentials | None = None
        self._fresh_until_s = 0.0
        self._session: Any = None
        self._renewal: asyncio.Task[None] | None = None

    async def get(self) -> AwsCredentials | None:
        first = self._renewal is None or self._fresh_until_s == 0.0
        if time.monotonic() >= self._fresh_until_s and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._renew())
        if first and self._renewal is not None:
            await asyncio.shield(self._renewal)
        return self._found

    async def _renew(self) -> None:
        try:
            self._found = await asyncio.to_thread(self._search)
        finally:
            self._fresh_until_s = time.monotonic() + _CHAIN_TTL_S

    def _search(self) -> AwsCredentials | None:
        try:
            self._session = self._session or botocore.session.get_session()
            found = self._session.get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except BotoCoreError:
            return None
        if frozen is None:
            return None
        return AwsCredentials(
            access_key_id=frozen.access_key, secret_access_key=frozen.secret_key, session_token=frozen.token
        )


def redact(body: bytes, credentials: Credentials | None) -> bytes:
    """`body` with each secret of `credentials` taken out: some providers echo the key that they refuse."""
    if credentials is None:
        return body
    aws = credentials.aws
    secrets = [credentials.api_key, *((aws.access_key_id, aws.secret_access_key, aws.session_token) if aws else ())]
    for secret in secrets:
        if secret and len(secret) >= _MIN_SECRET_CHARS:
            for form in (secret, secret.replace("/", "\\/")):  # JSON may escape the slash
                body = body.replace(form.encode(), _REDACTED)
    return body


def _read_environment(row: Provider, environment: Mapping[str, str]) -> tuple[Credentials, ...]:
    def read(*names: str) -> str | None:
        return next((value for name in names if (value := environment.get(name, "").strip())), None)

    named = {name: key for name in row.api_key_env if (key := read(name))}
    if row.auth != "sigv4":
        return tuple(Credentials(label=name, api_key=key) for name, key in named.items())
    region = row.region or read("AWS_REGION", "AWS_DEFAULT_REGION")
    if not named and (bearer := read(_BEDROCK_BEARER)):
        named = {_BEDROCK_BEARER: bearer}
    if named:
        return tuple(Credentials(label=name, api_key=key, region=region) for name, key in named.items())
    key_id, secret = read("AWS_ACCESS_KEY_ID"), read("AWS_SECRET_ACCESS_KEY")
    if key_id and secret:
        aws = AwsCredentials(access_key_id=key_id, secret_access_key=secret, session_token=read("AWS_SESSION_TOKEN"))
        return (Credentials(label="AWS_ACCESS_KEY_ID", aws=aws, region=region),)
    return ()
