"""What the gateway logs: lines that no value can forge, with the request's id, without bodies, headers or secrets."""

from __future__ import annotations

import logging
import sys
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

LOGGERS = ("orqen_ray", "deployments")
_MAX_VALUE_CHARS = 4096
_OWN_FIELDS = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_requests = logging.getLogger("orqen_ray.requests")


@dataclass(slots=True)
class CurrentRequest:
    """The request that this task works for. `recorded`: it has been counted, and logged where that is asked for."""

    request_id: str
    recorded: bool = False


CURRENT: ContextVar[CurrentRequest | None] = ContextVar("orqen_request", default=None)


def configure_logs(
    *,
    format: Literal["text", "json"] = "text",
    level: str = "info",
    requests: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send what the gateway's own loggers say from `level` up to `stream`; once per process, at its start.

    Args:
        requests: a line for each request too, whatever the level.
        stream: None for standard error: the process's own, not what Ray Serve puts in its place, which drops lines.
    """
    handler = logging.StreamHandler(stream or sys.__stderr__)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    _requests.setLevel(logging.INFO if requests else logging.CRITICAL)


def log_request(**fields: Any) -> None:
    """One line for a request that has ended, where `logs.requests` asks for it."""
    if _requests.isEnabledFor(logging.INFO):
        _requests.info("request", extra=fields)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode(_fields(record)).decode()


class TextFormatter(logging.Formatter):
    """`TIME LEVEL logger [request] message name=value`; the frames of an exception below it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        time, level, logger, message = (fields.pop(name) for name in ("time", "level", "logger", "message"))
        request_id, stack = fields.pop("request_id", None), fields.pop("stack", ())
        named = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        request = f" [{request_id}]" if request_id else ""
        return "\n  ".join([f"{time} {level.upper()} {logger}{request} {message}{named}", *stack])


def visible(text: str) -> str:
    r"""`text` in one line of printable characters, bounded.

    >>> visible("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    if len(text) > _MAX_VALUE_CHARS:
        text = f"{text[:_MAX_VALUE_CHARS]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    current = CURRENT.get()
    fields: dict[str, Any] = {
        "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": visible(record.getMessage()),
    }
    if current is not None:
        fields["request_id"] = visible(current.request_id)
    for name, value in vars(record).items():
        if name not in _OWN_FIELDS and not name.startswith("_"):  # Ray marks every record with a time of its own
            fields[visible(name)] = _plain(value)
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"], fields["stack"] = _without_words(record.exc_info[1])
    return fields


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return visible(str(value))


def _without_words(error: BaseException) -> tuple[str, list[str]]:
    """The types of an exception and of its causes, and where it came from: its words may hold what a caller sent."""
    kinds: list[str] = []
    frames: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(kinds) < 5:
        kinds.append(type(seen).__qualname__)
        frames += [
            f"{each.filename}:{each.lineno} in {each.name}" for each in traceback.extract_tb(seen.__traceback__)[-20:]
        ]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return " from ".join(kinds), frames


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and not any(character in text for character in ' "=') else msgspec.json.encode(text).decode()
