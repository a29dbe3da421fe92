"""`GET /metrics`: who may read it, what is counted, and that each request is counted once."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from orqen_ray.config import Settings
from orqen_ray.errors import UpstreamUnavailable
from orqen_ray.service import Service, open_service
from orqen_ray.types import Call, UpstreamReply
from tests.api.conftest import ROWS, ScriptedUpstream, json_reply
from tests.api.test_edges import ASK, CHAT, START, Caller, secret_of

ANSWER = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}'
)


def value(service: Service, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def statuses(service: Service) -> dict[tuple[str, str, str], float]:
    (family,) = [each for each in service.metrics.registry.collect() if each.name == "orqen_requests"]
    return {
        (each.labels["format"], each.labels["provider"], each.labels["status"]): each.value
        for each in family.samples
        if each.name.endswith("_total")
    }


async def test_only_an_admin_key_opens_the_page(client: httpx.AsyncClient, service: Service) -> None:
    _, admin = await service.keys.create("prometheus", admin=True)
    assert (await client.get("/metrics", headers={"authorization": ""})).status_code == 401
    refused = await client.get("/metrics")
    assert refused.status_code == 403 and "orqen keys create --admin" in refused.json()["error"]["message"]
    page = await client.get("/metrics", headers={"authorization": f"Bearer {admin}"})
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE orqen_requests_total counter" in page.text


async def test_the_page_is_open_when_the_settings_say_so(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    storage = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/orqen.db", "traces_uri": f"{tmp_path}/traces"}
    settings = Settings.model_validate({"storage": storage, "server": {"open_metrics": True}})
    service = await open_service(settings, upstream)
    caller = Caller("", "/metrics", {})
    caller.scope |= {"method": "GET", "headers": []}
    await caller.ask(service)
    await service.aclose()
    assert caller.sent[0]["status"] == 200


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("application/openmetrics-text; version=x; escaping=\x7f", True),
        ("text/plain;version=;escaping=;", False),
        ("", False),
    ],
)
async def test_openmetrics_is_told_when_it_is_asked_for(
    client: httpx.AsyncClient, service: Service, accept: str, is_openmetrics: bool
) -> None:
    _, admin = await service.keys.create("prometheus", admin=True)
    page = await client.get("/metrics", headers={"authorization": f"Bearer {admin}", "accept": accept})
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("application/openmetrics-text") is is_openmetrics
    assert page.text.endswith("# EOF\n") is is_openmetrics


async def test_a_request_is_counted_with_its_times_and_tokens(
    client: httpx.AsyncClient, service: Service, upstream: ScriptedUpstream
) -> None:
    upstream.script = json_reply(ANSWER)
    await client.post(CHAT, json=ASK)
    assert statuses(service) == {("openai_chat", "lab-openai", "200"): 1.0}
    for kind, tokens in {"input": 8.0, "cache_read": 4.0, "output": 5.0, "cache_write": 0.0}.items():
        assert value(service, "orqen_tokens_total", provider="lab-openai", kind=kind) == tokens
    call = {"format": "openai_chat", "provider": "lab-openai"}
    assert value(service, "orqen_request_duration_seconds_count", **call) == 1
    assert value(service, "orqen_first_byte_seconds_count", provider="lab-openai") == 1
    assert value(service, "orqen_overhead_seconds_count", format="openai_chat") == 1
    assert value(service, "orqen_open_requests") == 0


async def test_each_way_to_end_is_counted_once(
    client: httpx.AsyncClient, service: Service, upstream: ScriptedUpstream
) -> None:
    upstream.script = json_reply(b'{"error":{"message":"no"}}', 418)
    nobody, key = "none", {"authorization": "Bearer x"}
    await client.post(CHAT, json=ASK)  # 418 of the provider
    await client.post(CHAT, json=ASK, headers=key)  # 401
    await client.post(CHAT, content=b"x" * ((1 << 20) + 1))  # 413
    await client.post(CHAT, content=b"x", headers={"content-type": "text/plain"})  # 415
    await client.post(CHAT, json={**ASK, "model": "no-such-model"})  # 404, with a trace
    await client.post("/v1/messages", content=b"{")  # 400
    await client.get(CHAT)  # 405
    await client.get("/nothing")  # 404
    await client.get("/v1/models")
    await client.get("/v1/models/no-such-model")  # 404
    await client.post("/model/%20/converse", json={})  # 400 before there is an exchange
    await client.get("/healthz")
    assert statuses(service) == {
        ("openai_chat", "lab-openai", "418"): 1,
        ("openai_chat", nobody, "401"): 1,
        ("openai_chat", nobody, "413"): 1,
        ("openai_chat", nobody, "415"): 1,
        ("openai_chat", nobody, "404"): 3,
        ("openai_chat", nobody, "405"): 1,
        ("openai_chat", nobody, "200"): 1,
        ("anthropic_messages", nobody, "400"): 1,
        ("bedrock_converse", nobody, "400"): 1,
    }


@pytest.mark.parametrize("status", [0, 99, 299, 599, 700, 999])
async def test_a_status_that_no_standard_knows_makes_no_label_of_its_own(
    client: httpx.AsyncClient, service: Service, upstream: ScriptedUpstream, status: int
) -> None:
    upstream.script = json_reply(b"{}", status)
    await client.post(CHAT, json=ASK)
    ((_, _, label),) = statuses(service)
    assert re.fullmatch(r"\dxx|[1-5]\d\d", label)


async def test_a_bug_and_a_caller_that_leaves_are_counted(service: Service, upstream: ScriptedUpstream) -> None:
    def broken(call: Call) -> object:
        raise RuntimeError("a bug")

    upstream.script = broken  # type: ignore[assignment]
    secret = await secret_of(service)
    await Caller(secret, CHAT, ASK).ask(service)
    caller = Caller(secret, CHAT, ASK)

    async def stalled(call: Call) -> UpstreamReply:
        assert value(service, "orqen_open_requests") == 1
        caller.gone.set()
        await asyncio.Event().wait()
        raise AssertionError

    upstream.send = stalled  # type: ignore[method-assign]
    await caller.ask(service)
    provider = "lab-openai"
    assert statuses(service) == {("openai_chat", provider, "500"): 1, ("openai_chat", provider, "499"): 1}
    assert value(service, "orqen_open_requests") == 0


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_stream_is_counted_at_its_end(service: Service, upstream: ScriptedUpstream, path: str) -> None:
    upstream.script = lambda call: (200, {"content-type": "text/event-stream"}, START)
    body = {**ASK, "model": "lab-anthropic/m", "stream": True, "max_tokens": 5}
    await Caller(await secret_of(service), path, body).ask(service)
    assert list(statuses(service).values()) == [1]
    assert value(service, "orqen_tokens_total", provider="lab-anthropic", kind="input") == 9


async def test_a_provider_that_cannot_be_reached_is_counted(
    client: httpx.AsyncClient, service: Service, upstream: ScriptedUpstream
) -> None:
    async def gone(call: Call) -> UpstreamReply:
        raise UpstreamUnavailable("gone")

    upstream.send = gone  # type: ignore[method-assign]
    await client.post(CHAT, json=ASK)
    assert statuses(service) == {("openai_chat", "lab-openai", "503"): 1}


async def test_labels_are_rows_of_the_catalog_whatever_callers_send(
    client: httpx.AsyncClient, service: Service
) -> None:
    for number in range(50):
        await client.post(
            CHAT, json={**ASK, "model": f"nobody-{number}/m"}, headers={"x-orqen-session-id": str(number)}
        )
    assert {provider for _, provider, _ in statuses(service)} <= {"none", *ROWS}
    assert len(statuses(service)) == 1
