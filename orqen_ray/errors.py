"""Every error that a caller can see, as one tree; a message says what was wrong and how to mend it.

GatewayError                 500  internal
├ BadRequest                 400  the request cannot be read, or names something that does not fit
│ ├ PayloadTooLarge          413  the body is over the limit
│ ├ UnsupportedMediaType     415  the body is not JSON
│ └ ProviderNotConnected     400  the provider that owns the model has no credentials
├ Unauthenticated            401  no key, or one that is unknown, expired or revoked
├ Forbidden                  403  the key may not do this
├ NotFound                   404  no such path
│ └ UnknownModel             404  no provider owns the model
├ MethodNotAllowed           405
├ Overloaded                 429  too many requests; retry after `retry_after_s`
├ StoreUnavailable           503  the gateway's own database or its secret key cannot be used
└ UpstreamError              502  the provider failed, or answered what cannot be read
  ├ UpstreamRejected         (the provider's status)  the provider refused the request
  ├ UpstreamTimeout          504  the provider did not answer in time
  │ └ DeadlinePassed         504  the time for the whole request is over
  ├ UpstreamUnavailable      503  no connection to the provider
  │ └ CircuitOpen            503  the provider failed too often and is not called for a while
  └ UpstreamRefused          400  the provider's address is not allowed (private network, redirect)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _rebuild(cls: type[GatewayError], state: dict[str, Any]) -> GatewayError:
    error = cls.__new__(cls, state.get("message", ""))
    error.__dict__.update(state)
    return error


class GatewayError(Exception):
    """Base of all errors whose message may be shown to a caller. `headers` of the response go with it."""

    status = 500
    code = "internal"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles errors that cross a handle; the default would call __init__ with the wrong arguments.
        return _rebuild, (type(self), self.__dict__)

    def __str__(self) -> str:
        return self.message


class BadRequest(GatewayError):
    """The request is wrong. `param` is the path of the field, as `messages[2].role`."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


class PayloadTooLarge(BadRequest):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(BadRequest):
    status = 415
    code = "unsupported_media_type"


class ProviderNotConnected(BadRequest):
    code = "provider_not_connected"


class Unauthenticated(GatewayError):
    status = 401
    code = "invalid_api_key"


class Forbidden(GatewayError):
    status = 403
    code = "forbidden"


class NotFound(GatewayError):
    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    code = "method_not_allowed"


class Overloaded(GatewayError):
    status = 429
    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(GatewayError):
    status = 503
    code = "store_unavailable"


class UpstreamError(GatewayError):
    """The provider failed. `provider` names it; the message never holds its address or a secret.

    Attributes:
        key: the label of the provider's key that was used, if any was.
        other_keys: the provider has a key that this request has not tried and may try.
    """

    status = 502
    code = "upstream_error"

    def __init__(self, message: str, *, provider: str | None = None) -> None:
        super().__init__(message)
        self.provider = provider
        self.key: str | None = None
        self.other_keys = False


class UpstreamRejected(UpstreamError):
    """The provider answered with an error, kept as its own format's reader found it.

    Attributes:
        status: the provider's HTTP status, 400-599.
        kind: the provider's own word for the error (`overloaded_error`, `ThrottlingException`), if it gave one.
        retry_after_s: seconds from its `Retry-After`, if it sent one.
    """

    code = "upstream_rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str | None = None,
        param: str | None = None,
        provider: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, provider=provider)
        self.status = status
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class DeadlinePassed(UpstreamTimeout):
    code = "deadline_passed"


class UpstreamUnavailable(UpstreamError):
    status = 503
    code = "upstream_unavailable"


class CircuitOpen(UpstreamUnavailable):
    code = "circuit_open"

    def __init__(self, message: str, *, retry_after_s: float, provider: str | None = None) -> None:
        super().__init__(message, provider=provider)
        self.retry_after_s = retry_after_s


class UpstreamRefused(UpstreamError):
    status = 400
    code = "upstream_address_refused"
