"""Frozen values that travel between the gateway and its providers, shared by all modules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from orqen_ray.conversation import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model family can do; a row of `catalog.toml`. The defaults are those of an unknown model."""

    prefix_bound: bool = False
    forced_tool_choice: bool = True
    mid_conversation_system: bool = False
    mid_conversation_tools: bool = False
    defer_loading: bool = False
    cache_markers: bool = False
    cache_markers_on_tools: bool = True
    cache_ttl: bool = True
    """Takes a marker that says how long, not only the default."""
    cache_min_tokens: int = 1024
    prompt_cache: bool = True
    """Prompts that the provider has seen lately cost less: by themselves in OpenAI's dialect, marked in the others."""
    images: bool = True
    documents: bool = True
    tools: bool = True
    structured_output: bool = True
    stream_usage: bool = True
    thinking: Literal["none", "budget", "adaptive"] = "none"
    sampling_refused: frozenset[str] = frozenset()
    one_sampler: bool = False
    """Takes `temperature` or `top_p`, not both."""
    max_tokens_field: str = "max_completion_tokens"
    default_max_tokens: int = 8192
    tool_id_pattern: str | None = None
    """Regular expression that the provider demands of tool call ids, when narrower than the format's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A request or reply in wire form, and paths of what it cannot carry (`messages[1].content[0].citations`)."""

    body: JsonObject
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsCredentials:
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A secret of a provider: an API key (or Bedrock bearer token), or AWS keys; with them region and base URL.

    `label` tells it from the provider's other ones wherever it is spoken of; it is no secret.
    """

    label: str = "default"
    api_key: str | None = field(default=None, repr=False)
    aws: AwsCredentials | None = None
    region: str | None = None
    base_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a provider. The forwarder adds its base URL, its credentials and nothing else.

    `path` starts with a slash, is already URL-encoded, and follows the base URL of the row's dialect. `headers` come
    from the caller through the allow-list. `credentials` are the caller's own, if the request carried any. Picklable.
    """

    provider: str
    path: str
    body: bytes
    method: str = "POST"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    credentials: Credentials | None = None
    stream: bool = False
    deadline_s: float | None = None
    """Seconds from now within which the whole answer must have come; None: the forwarder's own bound alone."""
    model: str = ""
    conversation: str = ""
    """Names the conversation, so that all its turns use the same one of a provider's keys."""
    key_bound: bool = False
    """The history holds reasoning that only the account which made it can read: no other key may be tried."""
    avoid_keys: tuple[str, ...] = ()
    """Labels of keys that were tried for this request already: taken only when there is no other."""
    hedge: bool = False
    """A second try beside one that is still under way: another key than that one's, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call to a provider on behalf of a request, as it is traced.

    Attributes:
        key: the label of the provider's key, never the secret; None where the call carried its own or needed none.
        status: the HTTP status of its head; None when there was no head.
        error_code: the gateway's word for what went wrong; None when nothing did.
        started_ms: when it was sent, after the request's start.
        took_ms: until its head was there, or its failure.
    """

    provider: str
    model: str
    key: str | None = None
    status: int | None = None
    error_code: str | None = None
    started_ms: float = 0.0
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolScore:
    """What was decided about one tool, as it is traced; see `tools.routing.Verdict`."""

    name: str
    kept: bool
    reason: str
    score: float | None = None


@dataclass(slots=True, kw_only=True)
class UpstreamReply:
    """A provider's answer, its head read. `chunks` yields the body as it arrives and closes the connection when closed.

    `headers` has lower-case names and holds only those a caller may see.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    key: str | None = None
    """The label of the provider's key that was used; None where the call carried its own or needed none."""
    other_keys: bool = False
    """The provider has a key that this request has not tried and may try."""

    async def aclose(self) -> None:
        """Drop the rest of the body and cancel the provider's work."""
        close = getattr(self.chunks, "aclose", None)
        if close is not None:
            await close()


class Upstream(Protocol):
    """The one way to the network: in the ingress process, or a pool of its own behind a Ray Serve handle."""

    async def send(self, call: Call) -> UpstreamReply:
        """Send once and return when the head of the answer is there, whatever its status.

        Raises:
            ProviderNotConnected: no credentials.
            CircuitOpen: the provider was not called, because it failed too often.
            Overloaded: it was not called, because too many calls are open, or because each of its keys has to rest.
            UpstreamTimeout, UpstreamUnavailable, UpstreamRefused: nothing of an answer was received.
        """
        ...

    async def connected(self) -> frozenset[str]:
        """Names of the providers that have credentials, or need none and are configured."""
        ...
