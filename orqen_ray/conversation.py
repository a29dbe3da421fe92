"""The neutral conversation: what a request, a reply and a stream mean, whatever format they came in. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

JsonObject = dict[str, Any]
"""A JSON object as decoded; the only untyped value that crosses modules."""

FormatName = Literal["openai_chat", "anthropic_messages", "bedrock_converse"]
Role = Literal["system", "user", "assistant"]


# --- Blocks: what a message is made of --------------------------------------------------------------------------
# `extra` carries fields that this code does not know, under the names of the conversation's own format. Only a writer
# of that same format puts them back; any other names them in `Written.dropped`.
# `wire` is the JSON object that a value was read from: a writer of that same format may write it again, as it was
# spelled, for as long as it still reads to an equal value.


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMarker:
    """The caller's wish that the prompt up to and including this block be cached. `ttl`: "5m", "1h" or the default."""

    ttl: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text. With `json` it is the JSON form of a value that the caller sent as such (Bedrock's `json` tool results)."""

    text: str
    json: bool = False
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the bytes of a medium are. `data` is base64 text, a URL, plain text, a provider's file id or an S3 URI."""

    kind: Literal["base64", "url", "text", "file_id", "s3"]
    data: str
    media_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    source: Source
    detail: str | None = None
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    source: Source
    name: str | None = None
    context: str | None = None
    citations: bool | None = None
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Reasoning with the vendor's signature; `redacted` holds the sealed form (then `text` is empty)."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call by the model. `arguments` is JSON text exactly as received (a `custom` tool's is free text)."""

    id: str
    name: str
    arguments: str
    custom: bool = False
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call gave. `wire_status` is the status as the caller wrote it, so that the same format writes it back."""

    call_id: str
    blocks: tuple[Block, ...]
    is_error: bool = False
    wire_status: str | None = None
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChange:
    """A tool offered or withdrawn from this point on: by name, or by value when `tool` is set.

    Source: platform.claude.com/docs/build-with-claude/mid-conversation-system-messages.
    """

    action: Literal["add", "remove"]
    name: str
    tool: Tool | None = None
    cache: CacheMarker | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A block of a kind that the code does not know, as received; only its own format can carry it."""

    kind: str
    raw: JsonObject


Block = Text | Image | Document | Thinking | Refusal | ToolCall | ToolResult | ToolChange | Opaque


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. Tool results are blocks of a `user` message in every format; a `system` message may stand anywhere.

    `wire_role` is the role as the caller wrote it (`developer`, `tool`), so that the same format writes it back.
    """

    role: Role
    blocks: tuple[Block, ...]
    wire_role: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    wire: JsonObject | None = field(default=None, compare=False, repr=False)


# --- The request ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool definition. `raw` is set for a provider's built-in tool, which only its own format can carry.

    `examples` and `keep` are the gateway's own extensions (`x-orqen-examples`, `x-orqen-keep`), never forwarded.
    """

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    custom: bool = False
    cache: CacheMarker | None = None
    examples: tuple[str, ...] = ()
    keep: bool = False
    raw: JsonObject | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    wire: JsonObject | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """`any` = some tool must be called; `tool` = the one in `names`; `allowed` = only those in `names` (`required`
    says whether one must be called)."""

    mode: Literal["auto", "none", "any", "tool", "allowed"]
    names: tuple[str, ...] = ()
    required: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How much the model should think. `effort` is the vendor's word (`minimal`, `low`, `medium`, `high`, `max`)."""

    mode: Literal["off", "on", "adaptive"] | None = None
    budget_tokens: int | None = None
    effort: str | None = None
    display: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """Structured output: any JSON object, or JSON that obeys `schema`.

    `schema_text` is the schema as the caller wrote it, in the format that carries it as JSON text (Bedrock).
    """

    kind: Literal["text", "json", "schema"]
    schema: JsonObject | None = None
    schema_text: str | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A request to a chat model, read from one of the three formats.

    `sampling` uses OpenAI's field names, `top_k` added: temperature, top_p, top_k, frequency_penalty, presence_penalty,
    seed, logit_bias, n, logprobs, top_logprobs. Top-level fields not known are in `extra`.
    """

    format: FormatName
    model: str
    messages: tuple[Message, ...]
    system: tuple[Block, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Reasoning | None = None
    output_format: OutputFormat | None = None
    stream: bool = False
    include_usage: bool = False
    """The caller asked for usage in an OpenAI stream; always true in the other formats."""
    auto_cache: CacheMarker | None = None
    """Anthropic's top-level `cache_control`: the provider places the marker on the last block."""
    user: str | None = None
    service_tier: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    wire: JsonObject | None = field(default=None, compare=False, repr=False)


_BILLING = "x-anthropic-billing-header:"


def lasting(system: tuple[Block, ...]) -> tuple[Block, ...]:
    """`system` without the block that Claude Code writes anew for each request; `system` itself where there is none.

    A note to Anthropic, and nothing that a model should read: https://github.com/anthropics/claude-code/issues/68900.
    """
    kept = tuple(block for block in system if not (isinstance(block, Text) and block.text.startswith(_BILLING)))
    return system if len(kept) == len(system) else kept


# --- The reply --------------------------------------------------------------------------------------------------

StopReason = Literal[
    "end", "max_tokens", "stop_sequence", "tool_call", "refusal", "pause", "context_window", "malformed"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call. The three input counts add up to the whole prompt and never overlap.

    `reasoning_tokens` is a part of `output_tokens`; `cache_write_1h_tokens` a part of `cache_write_tokens`.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer. `id` and `model` are the provider's; `extra` holds unknown fields of the provider's format."""

    id: str
    model: str
    blocks: tuple[Block, ...]
    stop_reason: StopReason = "end"
    stop_sequence: str | None = None
    usage: Usage | None = None
    created_s: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStart:
    id: str
    model: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStart:
    """`block` is the block as known so far: empty text, a tool call without arguments, or a whole redacted block."""

    index: int
    block: Block


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDelta:
    """More of block `index`. `other` is a vendor's delta that the neutral form does not know (citations); see `raw`."""

    index: int
    kind: Literal["text", "thinking", "signature", "arguments", "refusal", "other"]
    text: str = ""
    raw: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStop:
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyEnd:
    """The last event of a complete stream; readers emit it once, when the provider's stream is finished."""

    stop_reason: StopReason
    stop_sequence: str | None = None
    usage: Usage | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """The provider keeps the connection alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailure:
    """The stream ended badly: the provider said so, or it broke off. Nothing follows."""

    message: str
    status: int = 502
    kind: str | None = None


Event = ReplyStart | BlockStart | BlockDelta | BlockStop | ReplyEnd | Ping | StreamFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the gateway reads in passing from a reply that it forwards untouched."""

    served_model: str | None = None
    usage: Usage | None = None
    stop_reason: StopReason | None = None
    tool_names: tuple[str, ...] = ()
    output_chars: int = 0
    failure: str | None = None
