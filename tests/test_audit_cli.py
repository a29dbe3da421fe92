"""`orqen audit tools`: what it says of a file, its exit code, and what it says of a file that it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orqen_ray.cli import app

SCHEMA = {
    "type": "object",
    "title": "GetForecastArguments",
    "properties": {
        "city": {"type": "string", "title": "City", "description": "Name of a city, in English."},
        "unit": {"enum": ["c", "f"]},
    },
}
GOOD = "Weather of a city for the days to come; use it when plans depend on rain."


def openai(name: str, description: str | None = GOOD, schema: Any = SCHEMA) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def anthropic(name: str) -> dict[str, Any]:
    return {"name": name, "description": GOOD, "input_schema": SCHEMA}


def audit(tmp_path: Path, content: Any, *options: str) -> Result:
    file = tmp_path / "tools.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return CliRunner().invoke(app, ["audit", "tools", str(file), *options])


def report(tmp_path: Path, content: Any, *options: str) -> dict[str, Any]:
    result = audit(tmp_path, content, "--json", *(options or ("--no-encoder",)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return {**json.loads(result.stdout), "code": result.exit_code}


@pytest.mark.parametrize(
    "content",
    [
        {"model": "m", "messages": [], "tools": [openai("get_forecast")]},
        [{"type": "function", **openai("get_forecast")["function"]}],
        {"model": "m", "tools": [anthropic("get_forecast")]},
        {"toolConfig": {"tools": [{"toolSpec": {**anthropic("get_forecast"), "inputSchema": {"json": SCHEMA}}}]}},
        {"jsonrpc": "2.0", "result": {"tools": [{"name": "get_forecast", "description": GOOD, "inputSchema": SCHEMA}]}},
    ],
    ids=["openai", "openai responses", "anthropic", "bedrock", "mcp"],
)
def test_every_format_is_read_alike(tmp_path: Path, content: Any) -> None:
    found = report(tmp_path, content)
    [tool] = found["tools"]
    assert (tool["name"], tool["score"], tool["findings"], found["code"]) == ("get_forecast", 100, [], 0)
    assert 0 < tool["compressed_tokens"] < tool["tokens"]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    nested = {"type": "object", "properties": {"from": {"description": "First day."}, "to": {"type": "string"}}}
    schema = {"type": "object", "properties": {"filter": nested, "ids": {"type": "array", "items": {"type": "string"}}}}
    tools = [
        openai("get_weather", None),
        openai("get_user_name", "Get the user name."),
        openai("list_orders", "Handles orders of customers, all kinds, and more of that."),
        openai("search_orders", "Finds orders; use it when a customer asks for one.", schema),
        {"type": "web_search", "name": "no tool of the caller's"},
    ]
    found = report(tmp_path, tools)
    by_name = {tool["name"]: tool for tool in found["tools"]}
    assert found["code"] == 1
    assert by_name["get_weather"]["findings"] == ["no description"] and by_name["get_weather"]["score"] == 0
    assert by_name["get_user_name"]["findings"] == ["repeats the name", "does not say when to use it"]
    assert by_name["list_orders"]["findings"] == ["vague", "does not say when to use it"]
    assert by_name["search_orders"]["undocumented"] == ["filter", "filter.to", "ids"]
    assert by_name["search_orders"]["untyped"] == ["filter.from"]
    assert len(by_name) == 4


@pytest.mark.parametrize("encoder", [True, False])
def test_tools_that_look_alike_are_paired(tmp_path: Path, encoder: bool) -> None:
    tools = [
        openai("get_forecast", "Weather forecast of a city; use it when someone asks for the weather."),
        openai("book_flight", "Books a seat on a plane, once the traveller has chosen one."),
        openai("fetch_forecast", "Weather forecast of a city; use it when someone asks for the weather."),
    ]
    found = report(tmp_path, tools, *(() if encoder else ("--no-encoder",)), "--min-score=0")
    assert [(pair["first"], pair["second"]) for pair in found["collisions"]] == [("get_forecast", "fetch_forecast")]
    assert (found["compared_by"] == "words") is not encoder


def test_no_embedder_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "orqen.yaml"
    (tmp_path / "model").mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("no model")
    settings.write_text(json.dumps({"encoders": {"embedder": str(tmp_path / "model")}}))
    monkeypatch.setenv("ORQEN_CONFIG", str(settings))
    result = audit(tmp_path, [openai("get_forecast")], "--json")
    assert result.exit_code == 0 and "compared by words" in result.stderr
    assert json.loads(result.stdout)["compared_by"] == "words"


def test_people_read_the_worst_first(tmp_path: Path) -> None:
    many = {"type": "object", "properties": {f"p{i}": {} for i in range(9)}}
    tools = [openai("get_forecast"), openai("other", None, many), openai("天气", "查询天气"), openai("get_forecast")]
    result = audit(tmp_path, tools, "--no-encoder")
    worst, *_ = result.stdout.splitlines()
    assert result.exit_code == 1
    assert worst.startswith("!   0  other: ") and "undocumented: p0, p1, p2, p3, p4, p5 and 3 more" in worst
    assert "1.000  get_forecast | get_forecast" in result.stdout
    assert "Refused as openai_chat: 'get_forecast': 2 tools have this name; '天气'" in result.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b'{"tools": [', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"7", "holds no tools"),
        ({"tools": []}, "holds no tools"),
        ({"toolConfig": 5}, "holds no tools"),
        ([openai("a"), 7], "tools[1]"),
        ([openai("a"), {"type": "function", "function": {"name": 5}}], "tools[1].function.name"),
        ([anthropic("a"), {"name": "b"}], "tools[1].input_schema"),
        ([{"toolSpec": {"name": "a"}}], "toolConfig.tools[0].toolSpec.inputSchema"),
        ([None], "tools[0]"),
    ],
)
def test_a_bad_file_ends_with_one_line(tmp_path: Path, content: Any, says: str) -> None:
    result = audit(tmp_path, content)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ") and says in result.stderr and result.stderr.count("\n") == 1


def test_a_missing_file_ends_with_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["audit", "tools", str(tmp_path / "none.json")])
    assert result.exit_code == 1 and "cannot be read: No such file" in result.stderr


def test_hostile_tools_are_audited(tmp_path: Path) -> None:
    hostile = {"type": 5, "properties": [1], "required": "x", "items": {"$ref": "#"}}
    tools = [openai("🌦️" * 40, "x" * 1_000_000, hostile), openai("", " "), *(openai(f"f{i}") for i in range(300))]
    found = report(tmp_path, tools)
    assert len(found["tools"]) == 302 and found["code"] == 1
