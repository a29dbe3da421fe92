"""What a provider can do wrong, through Ray Serve, as callers of all three formats see it: never a hang."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from botocore.eventstream import EventStreamBuffer

from tests.faults.conftest import IDLE_S, FaultyGateway, wait_until
from tests.faults.table import note

CALLERS = ("openai", "anthropic", "boto3")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "boto3": "/model/{}/converse"}
WITHIN_S = 2 * (IDLE_S + 1) + 2  # two attempts, each up to its time-out

# Fault -> the statuses that a caller may get, and whether the gateway asks again.
BEFORE_THE_FIRST_BYTE: dict[str, tuple[set[int], int]] = {
    "429": ({429}, 1),  # Retry-After is longer than the gateway waits
    "500": ({500}, 2),
    "503": ({503}, 2),
    "529": ({529}, 2),
    "stall": ({504}, 1),
    "reset": ({502, 503}, 2),
    "garbage": ({502}, 1),
    "garbage-body": ({502}, 1),
    "truncated": ({502, 503}, 1),
}
INSIDE_A_STREAM = ("stall-stream", "reset-stream", "garbage-stream", "truncated-stream", "ended-stream")


@pytest.fixture(scope="module")
def client(faulty: FaultyGateway) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {faulty.key}"}
    with httpx.Client(base_url=faulty.url, headers=headers, timeout=30) as client:
        yield client


def request(caller: str, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    path = PATHS[caller].format(model.replace("/", "%2F").replace(":", "%3A"))
    if caller == "boto3":
        body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
        return (f"{path}-stream" if stream else path), body
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 100}
    return path, body


def message_of(caller: str, body: Any) -> str:
    return str(body["message"] if caller == "boto3" else body["error"]["message"])


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_BYTE)
def test_a_failure_before_the_first_byte_is_an_error_with_a_status(
    faulty: FaultyGateway, client: httpx.Client, fault: str, caller: str
) -> None:
    if fault == "garbage-body" and caller == "openai":
        pytest.skip("a caller of the provider's own format gets the provider's own bytes")
    statuses, calls = BEFORE_THE_FIRST_BYTE[fault]
    model = f"{fault}:{caller}"
    path, body = request(caller, faulty.model(model), stream=False)
    started = time.monotonic()
    answer = client.post(path, json=body)
    took_s = time.monotonic() - started
    if caller == "boto3":  # AWS knows neither 502 nor 529
        statuses = statuses | {500, 503} if statuses & {502, 529} else statuses
    assert answer.status_code in statuses, answer.text
    assert message_of(caller, answer.json())
    assert faulty.provider.calls[model] == calls
    assert took_s < WITHIN_S
    if fault == "429":
        assert answer.headers["retry-after"] == "7"
    note(f"provider: {fault}", f"{answer.status_code}", f"{calls} call(s), {took_s * 1000:.0f} ms ({caller})")


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", INSIDE_A_STREAM)
def test_a_failure_inside_a_stream_is_an_error_event_and_the_end(
    faulty: FaultyGateway, client: httpx.Client, fault: str, caller: str
) -> None:
    if fault == "garbage-stream" and caller == "openai":
        pytest.skip("a caller of the provider's own format gets the provider's own bytes")
    model = f"{fault}:{caller}"
    path, body = request(caller, faulty.model(model), stream=True)
    started = time.monotonic()
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        data = b"".join(answer.iter_raw())
    took_s = time.monotonic() - started
    assert took_s < WITHIN_S
    assert b"hel" in data or b"hel" in base64.b64encode(data), "what came before the failure was delivered"
    assert error_event(caller, data), data[-300:]
    faulty.wait_closed(model, within_s=1.0)
    note(f"provider: {fault}", "200, then an error event", f"ended after {took_s * 1000:.0f} ms ({caller})")


@pytest.mark.parametrize("caller", CALLERS)
def test_a_stream_that_begins_with_an_error_is_asked_for_again(
    faulty: FaultyGateway, client: httpx.Client, caller: str
) -> None:
    model = f"error-stream:{caller}"
    path, body = request(caller, faulty.model(model), stream=True)
    answer = client.post(path, json=body)
    assert faulty.provider.calls[model] == 2
    assert answer.status_code >= 500 or error_event(caller, answer.content)
    note("provider: error-stream", f"{answer.status_code}", f"2 calls ({caller})")


def test_a_provider_that_keeps_failing_is_left_alone_and_tried_again_later(
    faulty: FaultyGateway, client: httpx.Client
) -> None:
    path, body = request("openai", faulty.model("500:circuit"), stream=False)
    for _ in range(20):
        if (answer := client.post(path, json=body)).status_code == 503:
            break
    assert answer.status_code == 503 and float(answer.headers["retry-after"]) <= 1
    calls = faulty.provider.calls["500:circuit"]
    started = time.monotonic()
    for _ in range(20):
        client.post(path, json=body)
    took_s = time.monotonic() - started
    assert faulty.provider.calls["500:circuit"] <= calls + 2 * (1 + took_s), "only probes get through"

    def tried_again() -> bool:
        client.post(path, json=body)
        return faulty.provider.calls["500:circuit"] > calls

    wait_until(tried_again, within_s=5)
    figures = f"open after {calls} calls; 20 requests answered in {took_s * 1000:.0f} ms, then tried again"
    note("provider: 500 again and again", "503 with Retry-After", figures)


def error_event(caller: str, data: bytes) -> str | None:
    """The last event of a stream, when it is the format's error."""
    if caller == "boto3":
        buffer = EventStreamBuffer()
        buffer.add_data(data)
        last = list(buffer)[-1]
        return last.headers[":exception-type"] if last.headers[":message-type"] == "exception" else None
    last_line = [line for line in data.decode().splitlines() if line.startswith("data: ")][-1]
    value = json.loads(last_line.removeprefix("data: ")) if last_line != "data: [DONE]" else {}
    return value["error"]["message"] if value.get("error") else None


def test_a_caller_that_does_not_read_holds_the_provider_back(faulty: FaultyGateway, client: httpx.Client) -> None:
    """200 MB wait at the provider, not in the gateway's memory."""
    ingresses = faulty.processes("Ingress") + faulty.processes("Forwarder")
    before_bytes = sum(each.memory_info().rss for each in ingresses)
    path, body = request("openai", faulty.model("flood:slow"), stream=True)
    with client.stream("POST", path, json=body) as answer:
        assert next(answer.iter_raw(1))
        sent_bytes = faulty.wait_steady(lambda: faulty.provider.last("flood:slow").sent_bytes)
        grown_bytes = sum(each.memory_info().rss for each in ingresses) - before_bytes
    faulty.wait_closed("flood:slow", within_s=1.0)
    assert sent_bytes < 60 << 20 and grown_bytes < 60 << 20
    figures = f"provider held at {sent_bytes / 2**20:.0f} of 200 MiB, gateway grew by {grown_bytes / 2**20:.0f} MiB"
    note("caller: does not read", "what it reads", figures)
