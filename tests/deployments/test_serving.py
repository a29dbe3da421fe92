"""The shared gateway, through its front door."""

from __future__ import annotations

import time

import httpx

from tests.conftest import RunningGateway, family_of, listening
from tests.scripted import ScriptedUpstream

QUESTION = [{"role": "user", "content": "hi"}]


def test_health_and_readiness_answer_without_a_key(gateway_url: str) -> None:
    assert httpx.get(f"{gateway_url}/healthz").status_code == 200
    assert httpx.get(f"{gateway_url}/readyz").status_code == 200


def test_a_chat_request_reaches_the_operators_provider(gateway_url: str, admin_key: str) -> None:
    answer = _ask(gateway_url, admin_key, "lab/plain")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


def test_a_request_has_one_request_id_and_keeps_its_own(gateway_url: str, admin_key: str) -> None:
    answer = _ask(gateway_url, admin_key, "lab/plain", {"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    odd = _ask(gateway_url, admin_key, "lab/plain", {"x-request-id": "not sane <>"})
    assert len(odd.headers.get_list("x-request-id")) == 1
    assert odd.headers["x-request-id"] != "not sane <>"


def test_a_client_cannot_set_serves_own_time_limit(gateway_url: str, admin_key: str) -> None:
    headers = {"authorization": f"Bearer {admin_key}", "x-request-timeout-seconds": "0.3"}
    body = {"model": "lab/endless", "messages": QUESTION, "stream": True}
    started = time.monotonic()
    with httpx.stream("POST", f"{gateway_url}/v1/chat/completions", json=body, headers=headers) as answer:
        for _ in answer.iter_bytes():
            if time.monotonic() - started > 0.8:
                break
        else:
            raise AssertionError("the stream was cut")


def test_a_client_that_leaves_is_left_by_the_provider_within_a_second(
    gateway_url: str, admin_key: str, upstream: ScriptedUpstream
) -> None:
    # the header would turn Serve's watch for disconnects off
    _leave_a_stream(gateway_url, admin_key, upstream, {"x-request-disconnect-disabled": "?1"})


def test_only_loopback_answers_for_the_gateway_itself(gateway: RunningGateway) -> None:
    port = int(gateway.url.rpartition(":")[2])
    assert {ip for ip, each in listening(family_of(gateway.process.pid)) if each == port} == {"127.0.0.1"}


def _ask(url: str, key: str, model: str, headers: dict[str, str] | None = None) -> httpx.Response:
    authorized = {"authorization": f"Bearer {key}", **(headers or {})}
    body = {"model": model, "messages": QUESTION}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=authorized, timeout=30)


def _leave_a_stream(url: str, key: str, upstream: ScriptedUpstream, headers: dict[str, str]) -> None:
    body = {"model": "lab/endless", "messages": QUESTION, "stream": True}
    authorized = {"authorization": f"Bearer {key}", **headers}
    upstream.hung_up.clear()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=authorized) as answer:
        assert answer.status_code == 200
        assert next(answer.iter_bytes())
    left_at = time.monotonic()
    assert upstream.hung_up.wait(5)
    assert upstream.hung_up_at - left_at < 1.0
