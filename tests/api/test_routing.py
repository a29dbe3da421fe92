"""Tools are routed through the whole application: what the provider gets, what the caller is told, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
import pytest_asyncio

from orqen_ray.api.app import create_app
from orqen_ray.config import Settings
from orqen_ray.encoders.protocol import EncoderUnavailable, Opening, Vectors
from orqen_ray.service import Service, open_service
from orqen_ray.tools.index import MORE_TOOLS
from orqen_ray.traces.reader import read_traces
from tests.api.conftest import ROWS, ScriptedUpstream, json_reply
from tests.api.test_hostile_tools import REPLIES

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACTIONS = ("create", "find", "delete", "update", "archive", "export")
THINGS = ("invoice", "customer", "shipment", "calendar event", "playlist", "photo album", "bank account", "recipe",
          "flight booking", "support ticket")  # fmt: skip
TOOLS = [
    (
        f"{action}_{thing.replace(' ', '_')}",
        f"{action.capitalize()} a {thing} of the user, by its id or its name. Gives the {thing} with all its fields.",
    )
    for thing in THINGS
    for action in ACTIONS
]
SCHEMA = {
    "type": "object",
    "title": "Arguments",
    "properties": {
        "id": {"type": "string", "title": "Id", "description": "The id, where it is known from an earlier call."},
        "query": {"type": "string", "title": "Query", "description": "Words that describe what is meant."},
        "limit": {"type": "integer", "title": "Limit", "description": "How many at most.", "default": 10},
    },
}
PATHS = {
    "openai_chat": "/v1/chat/completions",
    "anthropic_messages": "/v1/messages",
    "bedrock_converse": "/model/lab-bedrock%2Fm/converse",
}
ASKED = "Please create an invoice for the customer Miller over 300 euros."


def tools_of(format_: str, tools: list[tuple[str, str]] = TOOLS) -> list[dict[str, Any]]:
    if format_ == "openai_chat":
        return [{"type": "function", "function": {"name": n, "description": d, "parameters": SCHEMA}} for n, d in tools]
    if format_ == "anthropic_messages":
        return [{"name": name, "description": text, "input_schema": SCHEMA} for name, text in tools]
    return [{"toolSpec": {"name": n, "description": d, "inputSchema": {"json": SCHEMA}}} for n, d in tools]


def body_of(format_: str, *texts: str, tools: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """A conversation whose user and model speak in turn."""
    roles = ("user", "assistant")
    tools = tools_of(format_) if tools is None else tools
    if format_ == "bedrock_converse":
        messages: list[Any] = [{"role": roles[i % 2], "content": [{"text": text}]} for i, text in enumerate(texts)]
        return {"messages": messages, "toolConfig": {"tools": tools}, **more}
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    name = {"openai_chat": "lab-openai", "anthropic_messages": "lab-anthropic"}[format_]
    head = {"max_tokens": 100} if format_ == "anthropic_messages" else {}
    return {"model": f"{name}/m", **head, "messages": messages, "tools": tools, **more}


def names_in(body: bytes) -> list[str]:
    """The names of the tools in a request to a provider, in order."""
    payload = msgspec.json.decode(body)
    tools = payload.get("tools") or payload.get("toolConfig", {}).get("tools", [])
    return [(tool.get("function") or tool.get("toolSpec") or tool)["name"] for tool in tools]


@dataclass
class Routed:
    """A gateway, and a session of its own: what other tests pinned is not found."""

    service: Service
    upstream: ScriptedUpstream
    client: httpx.AsyncClient
    headers: dict[str, str]
    targeted: str
    """A key that wants 15 tools: what OpenAI caches by itself is else sent whole until use was learned."""
    sent: list[bytes] = field(default_factory=list)

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers={**self.headers, **headers})

    async def ask(self, format_: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        self.upstream.script = json_reply(msgspec.json.encode(REPLIES[_ending(format_)]))
        if format_ == "openai_chat":
            headers = {"authorization": f"Bearer {self.targeted}", **headers}
        answer = await self.post(PATHS[format_], body, **headers)
        assert answer.status_code == 200, answer.text
        self.sent.append(self.upstream.calls[-1].body)
        return answer

    async def last_row(self) -> dict[str, Any]:
        """The trace row of the last request."""
        rows = await asyncio.to_thread(read_traces, self.service.settings.storage.traces_uri)
        return dict(rows.sort_by("started_at").to_pylist()[-1])


def _ending(format_: str) -> str:
    return {"openai_chat": "/chat/completions", "anthropic_messages": "/messages"}.get(format_, "/converse")


@asynccontextmanager
async def routed_gateway(
    folder: Path, embedder: Any = None, providers: Any = ROWS, **optimization: Any
) -> AsyncIterator[Routed]:
    storage = {"database_url": f"sqlite+aiosqlite:///{folder}/orqen.db", "traces_uri": f"{folder}/traces"}
    optimization = {"holdout_ratio": 0, "budget_ms": 5000, **optimization}
    settings = Settings.model_validate({"storage": storage, "providers": providers, "optimization": optimization})
    upstream = ScriptedUpstream()
    service = await open_service(settings, upstream, embedder=embedder, ship_traces=False)
    if isinstance(service.embedder, Opening):
        await service.embedder.opened()
    _, secret = await service.keys.create("test")
    key, targeted = await service.keys.create("targeted")
    await service.keys.switch(key.id, {}, k_target=15)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield Routed(service, upstream, client, {"authorization": f"Bearer {secret}"}, targeted)
    finally:
        await service.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Routed]:
    async with routed_gateway(tmp_path_factory.mktemp("routed")) as routed:
        yield routed


def fresh(shared: Routed) -> Routed:
    """The same gateway for another session."""
    shared.upstream.calls.clear()
    return replace(shared, headers={**shared.headers, "x-orqen-session-id": uuid4().hex}, sent=[])


@pytest.fixture
def routed(shared: Routed) -> Routed:
    return fresh(shared)


async def test_where_nothing_is_cached_a_set_never_seen_is_routed_for_any_key(routed: Routed) -> None:
    body = {**body_of("openai_chat", ASKED), "model": "sandbox/echo"}  # its row says `prompt_cache = false`
    routed.upstream.script = json_reply(msgspec.json.encode(REPLIES[_ending("openai_chat")]))
    answer = await routed.post(PATHS["openai_chat"], body)
    assert answer.status_code == 200, answer.text
    assert 0 < int(answer.headers["x-orqen-tools-output"]) < len(TOOLS) // 2
    cached = await routed.post(PATHS["openai_chat"], body_of("openai_chat", f"{ASKED} At once."))
    assert cached.headers["x-orqen-tools-output"] == str(len(TOOLS))


@pytest.mark.parametrize("format_", PATHS)
async def test_the_model_gets_the_tools_that_it_needs_and_an_index_of_the_rest(routed: Routed, format_: str) -> None:
    answer = await routed.ask(format_, body_of(format_, ASKED))
    names = names_in(routed.sent[-1])
    kept = names[:-1]
    assert names[-1] == MORE_TOOLS and "create_invoice" in kept and len(kept) < 30
    assert kept == [name for name, _ in TOOLS if name in kept], "the caller's order"
    whole = routed.sent[-1].decode()
    assert all(name in whole for name, _ in TOOLS), "what is left out is named"
    headers = answer.headers
    assert (headers["x-orqen-tools-input"], headers["x-orqen-tools-output"]) == ("60", str(len(kept)))
    assert headers["x-orqen-prune-ratio"] == f"{len(kept)}/60" and headers["x-orqen-routing"] in ("semantic", "keyword")


async def test_a_later_turn_sends_the_same_prefix(routed: Routed) -> None:
    await routed.ask("openai_chat", body_of("openai_chat", ASKED))
    later = body_of("openai_chat", ASKED, "Done.", "Now archive the playlist of last summer, and delete the recipe.")
    await routed.ask("openai_chat", later)
    first, second = map(msgspec.json.decode, routed.sent)
    assert first["tools"] == second["tools"]
    assert first["messages"] == second["messages"][: len(first["messages"])]
    row = await routed.last_row()
    assert (row["pin"], row["prefix_break"], row["tools_arm"]) == ("found", None, "routed")
    assert row["tool_tokens_output"] < row["tool_tokens_input"] and row["tools_scored"] == []


async def test_the_trace_tells_why_each_tool_was_kept(routed: Routed) -> None:
    answer = await routed.ask("anthropic_messages", body_of("anthropic_messages", ASKED))
    row = await routed.last_row()
    assert (row["pin"], row["tools_arm"], row["tools_propensity"]) == ("new", "routed", 1.0)
    assert row["tools_output"] == int(answer.headers["x-orqen-tools-output"]) < row["tools_input"] == 60
    scored = {each["name"]: each for each in row["tools_scored"]}
    assert len(scored) == 60 and scored["create_invoice"]["kept"] and scored["create_invoice"]["score"] > 0.1
    assert row["tool_set"] and row["policy"] and row["tools_method"] and 0 <= row["tools_p_miss"] <= 0.05
    assert {each["reason"] for each in scored.values() if not each["kept"]} == {"left_out"}


async def test_a_pin_that_was_lost_is_made_again_and_told(routed: Routed) -> None:
    """The same tools again, as another process finds them that cannot reach the store."""
    first = body_of("openai_chat", ASKED)
    await routed.ask("openai_chat", first)
    pins = routed.service._optimizer._pins
    assert pins._writing is not None
    await asyncio.wait({pins._writing})
    pins._known.clear()
    async with routed.service.database.begin(write=True) as connection:
        await connection.exec_driver_sql("DELETE FROM pins")
    await routed.ask("openai_chat", body_of("openai_chat", ASKED, "Done.", "And export the photo album."))
    assert names_in(routed.sent[0]) == names_in(routed.sent[1])
    assert (await routed.last_row())["pin"] == "lost"


@pytest.mark.parametrize("format_", PATHS)
async def test_what_the_caller_switches_off_goes_out_byte_for_byte(routed: Routed, format_: str) -> None:
    body = body_of(format_, ASKED)
    answer = await routed.ask(format_, body, **{"x-orqen-optimize": "off"})
    sent, asked = msgspec.json.decode(routed.sent[-1]), {**body}
    if "model" in body:
        asked["model"] = "m"
    assert sent == asked and "x-orqen-routing" not in answer.headers
    assert answer.headers["x-orqen-prune-ratio"] == "60/60"


async def test_the_header_and_the_key_choose_what_is_done(routed: Routed) -> None:
    body = body_of("openai_chat", ASKED)
    await routed.ask("openai_chat", body, **{"x-orqen-optimize": "schemas"})
    tools = msgspec.json.decode(routed.sent[-1])["tools"]
    assert len(tools) == 60 and "title" not in tools[0]["function"]["parameters"]
    await routed.ask("openai_chat", body_of("openai_chat", ASKED + " Now."), **{"x-orqen-optimize": "tools, context"})
    assert len(names_in(routed.sent[-1])) < 30
    assert "title" in msgspec.json.decode(routed.sent[-1])["tools"][0]["function"]["parameters"]
    wrong = await routed.post(PATHS["openai_chat"], body, **{"x-orqen-optimize": "tools,images"})
    assert wrong.status_code == 400 and "tools, schemas, context" in wrong.text and "images" in wrong.text


async def test_a_key_has_switches_and_a_number_of_tools(routed: Routed) -> None:
    key, secret = await routed.service.keys.create("switched")
    routed.headers["authorization"] = f"Bearer {secret}"
    await routed.service.keys.switch(key.id, {"schemas": False}, k_target=12)
    await routed.ask("anthropic_messages", body_of("anthropic_messages", ASKED))
    names = names_in(routed.sent[-1])
    assert 12 <= len(names) - 1 <= 14 and "title" in routed.sent[-1].decode()
    await routed.service.keys.switch(key.id, {"tools": False}, reset=True)
    routed.service._key_cache._known.clear()
    await routed.ask("anthropic_messages", body_of("anthropic_messages", ASKED + " Thanks."))
    assert len(names_in(routed.sent[-1])) == 60


async def test_a_held_out_conversation_gets_all_its_tools_untouched(tmp_path: Path) -> None:
    async with routed_gateway(tmp_path, holdout_ratio=1.0) as routed:
        body = body_of("anthropic_messages", ASKED)
        answer = await routed.ask("anthropic_messages", body)
        assert msgspec.json.decode(routed.sent[-1]) == {**body, "model": "m"}
        assert "x-orqen-routing" not in answer.headers
        row = await routed.last_row()
    assert (row["tools_arm"], row["tools_propensity"], row["tools_output"]) == ("holdout", 1.0, 60)
    assert 0 < sum(each["kept"] for each in row["tools_scored"]) < 60


class _Broken:
    """An embedder that is there, and fails."""

    name = "broken"
    dimensions = 384

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def embed(self, texts: Any) -> Vectors:
        raise self._error


VAGUE = "Something is not as it was last week, and I would like you to have a look at that for me."


@pytest.mark.parametrize(("error", "reason"), [(EncoderUnavailable("gone"), "late"), (RuntimeError("a bug"), "failed")])
async def test_without_an_encoder_all_tools_are_sent_and_go_on_to_be(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    async with routed_gateway(tmp_path, _Broken(error)) as routed:
        await routed.ask("openai_chat", body_of("openai_chat", VAGUE))
        planner, _ = routed.service._optimizer.planning
        planner._router._scorer._vectors = None  # the encoder is back, so to say
        await routed.ask("openai_chat", body_of("openai_chat", VAGUE, "What?", ASKED))
        assert [len(names_in(sent)) for sent in routed.sent] == [60, 60]
        first, second = map(msgspec.json.decode, routed.sent)
        assert first["tools"] == second["tools"]
        row = await routed.last_row()
    assert (row["pin"], row["tools_arm"], row["tools_reason"]) == ("found", "whole", reason)


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"n": 2},
        {"tools": [*tools_of("openai_chat"), *tools_of("openai_chat", [(MORE_TOOLS, "mine")])]},
        {"tools": [*tools_of("openai_chat"), *tools_of("openai_chat", TOOLS[:1])]},
    ],
)
async def test_where_the_index_could_do_harm_nothing_is_left_out(routed: Routed, more: dict[str, Any]) -> None:
    body = body_of("openai_chat", ASKED, **more)
    await routed.ask("openai_chat", body, **{"x-orqen-optimize": "tools"})
    assert msgspec.json.decode(routed.sent[-1]) == {**body, "model": "m"}


async def test_what_the_caller_wants_kept_is_kept_in_its_place(routed: Routed) -> None:
    tools = tools_of("openai_chat")
    tools[33]["function"]["x-orqen-keep"] = True
    body = body_of("openai_chat", ASKED, tools=tools)
    body["tool_choice"] = {"type": "function", "function": {"name": TOOLS[50][0]}}
    await routed.ask("openai_chat", body)
    names = names_in(routed.sent[-1])
    assert {TOOLS[33][0], TOOLS[50][0]} < {*names} and len(names) < 30
    assert b"x-orqen" not in routed.sent[-1]


async def test_a_marker_on_a_tool_left_out_moves_to_the_last_one(routed: Routed) -> None:
    tools = tools_of("anthropic_messages")
    routed.headers["authorization"] = f"Bearer {routed.targeted}"
    tools[-1]["cache_control"] = {"type": "ephemeral"}
    await routed.ask("anthropic_messages", body_of("anthropic_messages", ASKED, tools=tools))
    sent = msgspec.json.decode(routed.sent[-1])["tools"]
    assert [tool["name"] for tool in sent if "cache_control" in tool] == [MORE_TOOLS]


async def test_count_tokens_counts_what_would_be_sent(routed: Routed) -> None:
    routed.headers["authorization"] = f"Bearer {routed.targeted}"
    body = body_of("anthropic_messages", ASKED)
    routed.upstream.script = json_reply(b'{"input_tokens": 5}')
    answer = await routed.post("/v1/messages/count_tokens", {**body, "model": "lab-openai/m"})
    whole = await routed.post(
        "/v1/messages/count_tokens", {**body, "model": "lab-openai/m"}, **{"x-orqen-optimize": "off"}
    )
    assert answer.json()["input_tokens"] < 0.5 * whole.json()["input_tokens"]
    await routed.post("/v1/messages/count_tokens", body)
    counted = names_in(routed.upstream.calls[-1].body)
    await routed.ask("anthropic_messages", body)
    assert counted == names_in(routed.sent[-1])
    assert (await routed.last_row())["pin"] == "new", "a count pins nothing"


@pytest.mark.parametrize("format_", PATHS)
async def test_the_preview_tells_the_plan_and_forwards_nothing(routed: Routed, format_: str) -> None:
    routed.headers["authorization"] = f"Bearer {routed.targeted}"
    query = "?model=lab-bedrock/m" if format_ == "bedrock_converse" else ""
    body = body_of(format_, ASKED)
    answer = await routed.post(f"/v1/optimize/preview{query}", body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert routed.upstream.calls == []
    assert (plan["format"], plan["arm"], plan["pin"], plan["tools_input"]) == (format_, "routed", "new", 60)
    assert plan["tool_tokens_output"] < plan["tool_tokens_input"]
    verdicts = {each["name"]: each for each in plan["tools"]}
    assert verdicts["create_invoice"]["kept"] and len(verdicts) == 60
    await routed.ask(format_, body)
    assert msgspec.json.decode(routed.sent[-1]) == plan["body"]


async def test_a_preview_of_what_cannot_be_read_is_an_error_of_the_caller(routed: Routed) -> None:
    for query, body in (("?format=soap", {}), ("", {"model": "lab-openai/m"}), ("", {"model": 3, "messages": []})):
        answer = await routed.post(f"/v1/optimize/preview{query}", body)
        assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text
