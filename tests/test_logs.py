"""Log lines: one record is one line whatever its values are, with the request's id, and without anybody's words."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import UpstreamError
from orqen_ray.logs import CURRENT, CurrentRequest, JsonFormatter, TextFormatter, configure_logs, log_request

TEXT = st.text(st.characters(), max_size=50)


def record(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logging.getLogger("orqen_ray.test").makeRecord(
        "orqen_ray.test", logging.WARNING, "f.py", 1, message, arguments, exc_info, extra=extra
    )


@given(TEXT, TEXT)
def test_no_value_forges_a_line(message: str, value: str) -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record("%s", message, model=value))
        assert len(line.splitlines()) == 1 and line.isprintable()
    found = json.loads(JsonFormatter().format(record("%s", message, model=value)))
    assert found["level"] == "warning" and found["logger"] == "orqen_ray.test"


def test_a_json_line_holds_the_fields_by_name_and_the_requests_id() -> None:
    entered = CURRENT.set(CurrentRequest("req_1"))
    logged = record("%d rows", 3, provider="lab", took_ms=1.5, model=None)
    logged.__dict__["_ray_timestamp_ns"] = 1  # as Ray marks every record of a process that has imported it
    line = JsonFormatter().format(logged)
    CURRENT.reset(entered)
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning", "logger": "orqen_ray.test", "message": "3 rows", "request_id": "req_1", "provider": "lab",
        "took_ms": 1.5, "model": None,
    }  # fmt: skip


def test_a_text_line_can_be_read_and_split() -> None:
    line = TextFormatter().format(record("hello", model='a "b"=c', status=200))
    assert line.endswith('Z WARNING orqen_ray.test hello model="a \\"b\\"=c" status=200')


def _broken() -> None:
    try:
        raise ValueError("what the caller said")
    except ValueError as error:
        raise UpstreamError("what the provider said") from error


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_logged_by_its_kind_and_place_alone(formatter: logging.Formatter) -> None:
    with pytest.raises(UpstreamError) as caught:
        _broken()
    line = formatter.format(record("failed", error=caught.value))
    assert "UpstreamError from ValueError" in line and "in _broken" in line
    assert "said" not in line


def test_a_value_is_bounded() -> None:
    assert len(JsonFormatter().format(record("x", model="m" * 100_000))) < 5000


@pytest.mark.parametrize(("requests", "level", "lines"), [(True, "error", 1), (False, "debug", 0)])
def test_requests_are_logged_only_where_that_is_asked_for(requests: bool, level: str, lines: int) -> None:
    before = {name: logging.getLogger(name) for name in ("orqen_ray", "deployments", "orqen_ray.requests")}
    kept = {name: (each.handlers, each.propagate, each.level) for name, each in before.items()}
    written = io.StringIO()
    configure_logs(format="json", level=level, requests=requests, stream=written)
    try:
        log_request(status=200)
        assert written.getvalue().count('"status":200') == written.getvalue().count("\n") == lines
        assert logging.getLogger("orqen_ray.store").isEnabledFor(logging.DEBUG) is (level == "debug")
    finally:
        for name, (handlers, propagate, was) in kept.items():
            before[name].handlers, before[name].propagate = handlers, propagate
            before[name].setLevel(was)
