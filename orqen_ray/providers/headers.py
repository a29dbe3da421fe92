"""Which headers pass the gateway: from a caller to a provider, and from a provider back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orqen_ray.conversation import FormatName

ANTHROPIC_VERSION = "2023-06-01"

# Nothing else passes, so that no key, cookie or address of the caller reaches a provider.
_TO_PROVIDER: Mapping[FormatName, frozenset[str]] = {
    "openai_chat": frozenset({"content-type", "accept", "idempotency-key", "openai-beta"}),
    "anthropic_messages": frozenset(
        {"content-type", "accept", "idempotency-key", "anthropic-version", "anthropic-beta"}
    ),
    # Guardrail, trace and performance settings of InvokeModel are headers:
    # https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html
    "bedrock_converse": frozenset(
        {
            "content-type",
            "accept",
            "x-amzn-bedrock-accept",
            "x-amzn-bedrock-guardrailidentifier",
            "x-amzn-bedrock-guardrailversion",
            "x-amzn-bedrock-trace",
            "x-amzn-bedrock-performanceconfig-latency",
            "x-amzn-bedrock-service-tier",
        }
    ),
}
_TO_CALLER = frozenset(
    {
        "content-type",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "request-id",
        "openai-processing-ms",
        "openai-model",
        "openai-version",
        "x-amzn-requestid",
        "x-amzn-errortype",
    }
)
_TO_CALLER_PREFIXES = ("anthropic-ratelimit-", "x-ratelimit-", "x-amzn-bedrock-")


def allowed_request_headers(
    dialect: FormatName, headers: Mapping[str, str] | Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The caller's headers that a provider of `dialect` may see, names in lower case, repeated ones kept."""
    allowed = _TO_PROVIDER[dialect]
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((name.lower(), value) for name, value in pairs if name.lower() in allowed and value.isprintable())


def allowed_reply_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The provider's headers that a caller may see, names in lower case.

    The provider's `x-request-id` becomes `x-upstream-request-id`: the gateway has an id of its own.
    """
    seen = {name.lower(): value for name, value in headers.items()}
    allowed = {
        name: value for name, value in seen.items() if name in _TO_CALLER or name.startswith(_TO_CALLER_PREFIXES)
    }
    if "x-request-id" in seen:
        allowed["x-upstream-request-id"] = seen["x-request-id"]
    return allowed
