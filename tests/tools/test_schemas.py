"""A compressed tool takes the calls that it took before, says what it said, and never costs more."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from orqen_ray.conversation import CacheMarker, Conversation, Message, Text, Tool
from orqen_ray.formats.openai_chat.request_in import read_tool
from orqen_ray.formats.openai_chat.request_out import write_tool
from orqen_ray.tokens import count_tokens
from orqen_ray.tools.content import definition
from orqen_ray.tools.prose import plain
from orqen_ray.tools.schemas import compressed
from orqen_ray.tools.sizes import tool_tokens

# --- Any schema, any call ---------------------------------------------------------------------------------------

# Parameters are also named as keywords are.
NAMES = ["a", "user_id", "title", "default", "examples", "description", "$schema", "enum", "required", "id", "$ref"]
WORDS = [
    "The",
    "user",
    "id.",
    "title",
    "Must",
    "be",
    "10",
    "`code`",
    '"quoted"',
    "  ",
    "\n",
    "**bold**",
    "Optional.",
    "😀",
]
SENTENCES = ["Defaults to 10.", "This tool allows you to get it.", "One of: a, user_id.", "(a, user_id)"]
DRAFTS = ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema", "x:y"]
REFERENCES = ["#/$defs/a", "#/$defs/user_id", "#/definitions/title", "#/properties/a", "#/$defs/a/enum/0", "#"]


class Maker(random.Random):
    """Makes schemas, and calls that may or may not obey them, much faster than strategies for each part would."""

    def text(self) -> str:
        return " ".join(self.choices([*WORDS, *SENTENCES], k=self.randrange(8)))

    def value(self, depth: int = 0) -> Any:
        if depth < 3 and self.random() < 0.25:
            return [self.value(depth + 1) for _ in range(self.randrange(3))]
        if depth < 3 and self.random() < 0.4:
            return {name: self.value(depth + 1) for name in self.sample(NAMES, self.randrange(5))}
        return self.choice([None, True, 0, 3, 10, 11.5, "a", "user_id", "10", "", "x" * 250])

    def named(self, depth: int) -> dict[str, Any]:
        return {name: self.schema(depth + 1) for name in self.sample(NAMES, self.randrange(4))}

    def schema(self, depth: int = 1) -> Any:
        if depth > 4 or self.random() < 0.08:
            return self.random() < 0.8
        makers: dict[str, Callable[[], Any]] = {
            **dict.fromkeys(("title", "description", "$comment"), self.text),
            "default": self.value,
            "examples": lambda: [self.value(1) for _ in range(self.randrange(4))],
            "type": lambda: self.choice(["object", "string", "integer", "array", "null", ["string", "null"]]),
            "enum": lambda: self.choice([["a", "user_id"], [self.value()]]),
            "const": self.value,
            "minimum": lambda: self.randrange(12),
            "maxLength": lambda: self.randrange(6),
            "pattern": lambda: self.choice(["^a", "[0-9]"]),
            "required": lambda: self.sample(NAMES, self.randrange(3)),
            "minItems": lambda: self.randrange(3),
            "$ref": lambda: self.choices(REFERENCES, weights=[9, 9, 9, 9, 3, 1])[0],
            **dict.fromkeys(
                ("properties", "dependentSchemas", "patternProperties", "$defs"), lambda: self.named(depth)
            ),
            **dict.fromkeys(
                ("items", "additionalProperties", "not", "if", "then", "contains", "propertyNames"),
                lambda: self.schema(depth + 1),
            ),
            **dict.fromkeys(
                ("anyOf", "allOf", "oneOf"), lambda: [self.schema(depth + 1) for _ in range(self.randrange(1, 3))]
            ),
        }
        keys = self.sample(["title", "description", "default"], self.randrange(3))
        return {key: makers[key]() for key in [*keys, *self.sample(list(makers), self.randrange(5))]}

    def parameters(self) -> dict[str, Any]:
        whole = {"type": "object", "properties": self.named(0), "required": self.sample(NAMES, self.randrange(2))}
        more = self.schema(2) or {}
        more = {} if more is True else more
        more |= {"$defs": self.named(1), "definitions": self.named(1), "$schema": self.choice(DRAFTS)}
        return whole | {key: more[key] for key in more if self.random() < 0.6}


def verdict(schema: Any, call: Any) -> bool | str:
    """Whether `call` is valid; the kind of failure where that cannot be said (a reference that leads nowhere)."""
    try:
        return bool(validator_for(schema, default=Draft202012Validator)(schema).is_valid(call))
    except Exception as failure:  # noqa: BLE001  # the library's own kinds, recursion among them
        return type(failure).__name__


def is_schema(schema: Any) -> bool:
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError:
        return False
    return True


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_calls_are_valid(seed: int) -> None:
    make = Maker(seed)
    parameters, said, strict = make.parameters(), make.text(), make.random() < 0.3
    calls = [{name: make.value(1) for name in make.sample(NAMES, 4)} for _ in range(3)]
    before = msgspec.json.encode(parameters)
    tool = Tool(name="get_user", description=said, parameters=parameters, strict=strict)
    after = compressed(tool)
    assert msgspec.json.encode(parameters) == before, "the caller's own object was changed"
    assert [verdict(after.parameters, call) for call in calls] == [verdict(parameters, call) for call in calls]
    assert is_schema(after.parameters) or not is_schema(parameters)
    assert after is tool or tool_tokens(after) < tool_tokens(tool)
    assert compressed(after) is after
    assert definition(compressed(replace(tool, keep=True))) == definition(after)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, "Please note that it", "e.g. 3", "##", "- item", "```\n  a   b\n```"])).map(
        " ".join
    )
)
def test_a_description_keeps_its_numbers_code_and_quotes(text: str) -> None:
    after = plain(text)
    assert plain(after) == after and len(after) <= len(text)
    for kept in (r"\d+", r"(?<!`)`[^`\n]+`(?!`)", r'"[^"\n]+"', r"Must|only|never", "😀", r"```\n.*?```"):
        assert set(re.findall(kept, text)) <= set(re.findall(kept, after))


# --- What goes, and what stays ----------------------------------------------------------------------------------


def shorter(**parameters: Any) -> Any:
    return compressed(Tool(name="get_weather", description="Weather.", parameters=parameters)).parameters


def test_annotations_that_repeat_go() -> None:
    after = shorter(
        **{"$schema": "http://json-schema.org/draft-07/schema#", "$comment": "made by hand"},
        title="GetWeatherArguments",
        type="object",
        properties={
            "user_id": {"type": "string", "title": "User Id", "description": "The ID of the user."},
            "unit": {"enum": ["c", "f"], "description": 'Unit of the answer. One of: "c", "f".', "examples": ["c"]},
            "days": {"type": "integer", "default": 3, "description": "How far to look ahead. Defaults to 3."},
            "note": {"type": "string", "default": None, "description": "(optional) Shown to the user."},
        },
        required=["user_id"],
    )
    assert after == {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "unit": {"enum": ["c", "f"], "description": "Unit of the answer."},
            "days": {"type": "integer", "default": 3, "description": "How far to look ahead."},
            "note": {"type": "string", "description": "Shown to the user."},
        },
        "required": ["user_id"],
    }


def test_what_only_prose_says_stays() -> None:
    properties = {
        "day": {"type": "string", "description": "Day as YYYY-MM-DD, e.g. 2026-01-31. Must not be in the past."},
        "unit": {"enum": ["c", "f"], "description": "One of: c, f. Use f only in the US."},
        "mode": {"type": "string", "description": "One of: fast, slow."},
        "n": {"type": "integer", "default": 3, "description": "Defaults to 4 on Sundays. Optional in tests."},
        "to": {"type": "string", "title": "Recipient's address"},
    }
    after = shorter(type="object", title="GetWeather", properties=properties)
    assert after["properties"] == {**properties, "unit": {"enum": ["c", "f"], "description": "Use f only in the US."}}


def test_keywords_that_are_names_or_data_stay() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "$comment": {"type": "string"},
            "examples": {"enum": [{"title": "a", "$comment": "b"}], "default": {"title": "a", "$comment": "b"}},
        },
    }
    assert shorter(title="get weather", **parameters) == parameters


def test_definitions_stay_when_something_leads_to_them() -> None:
    used = {
        "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "at": {"$ref": "#/$defs/P%20q"}}}
    }
    used["P q"] = {"type": "number"}
    after = shorter(properties={"first": {"$ref": "#/$defs/Node"}}, **{"$defs": {**used, "Unused": {"type": "string"}}})
    assert after["$defs"] == used


@pytest.mark.parametrize("part", [{"items": [{"type": "string"}]}, {"contains": {}}, {"$ref": "#", "minimum": 3}])
def test_the_draft_stays_named_where_it_decides(part: dict[str, Any]) -> None:
    draft = "http://json-schema.org/draft-07/schema#"
    after = shorter(**{"$schema": draft}, title="GetWeather", properties={"a": part, "format": {"format": "date"}})
    assert after == {"$schema": draft, "properties": {"a": part, "format": {"format": "date"}}}


def test_a_strict_tool_keeps_what_the_vendor_demands() -> None:
    parameters = {
        "type": "object",
        "title": "GetWeather",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    after = compressed(Tool(name="get_weather", parameters=parameters, strict=True)).parameters
    assert after == {key: value for key, value in parameters.items() if key != "title"}


def test_the_writer_of_the_same_format_writes_the_short_form() -> None:
    function = {"name": "f", "description": "Says   hello.", "parameters": {"title": "F", "type": "object"}, "newer": 1}
    tool = read_tool({"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}, "tools[0]")
    written = write_tool(compressed(tool))
    assert written["function"] == {**function, "description": "Says hello.", "parameters": {"type": "object"}}
    assert written["cache_control"] == {"type": "ephemeral"}


def test_two_tools_of_one_content_keep_their_own_fields() -> None:
    tool = Tool(name="f", description="Says   hello.")
    marked = Tool(name="f", description="Says   hello.", cache=CacheMarker(), keep=True, defer_loading=True)
    assert compressed(tool).cache is None
    after = compressed(marked)
    assert (after.cache, after.keep, after.defer_loading) == (CacheMarker(), True, True)


def test_a_vendors_own_tool_and_one_that_cannot_shrink_are_the_same_objects() -> None:
    builtin = Tool(name="bash", raw={"type": "bash_20250124", "name": "bash", "title": "bash"})
    bare = Tool(name="f", description="Says hello.", parameters={"type": "object", "properties": {}})
    assert compressed(builtin) is builtin and compressed(bare) is bare


# --- Hostile definitions ----------------------------------------------------------------------------------------


def _deep(levels: int) -> Any:
    schema: Any = {"type": "string", "title": "a"}
    for _ in range(levels):
        schema = {"type": "object", "title": "a", "properties": {"a": schema}}
    return schema


HOSTILE: dict[str, Any] = {
    "type is a number": {"type": 5, "title": 7, "description": ["x"]},
    "properties are a list": {"properties": [1, {"title": "x"}], "required": "a", "items": 3},
    "booleans": {"properties": {"a": True, "b": False}, "additionalProperties": True, "$defs": True},
    "definitions are no schemas": {
        "$defs": {"a": 1, "b": None},
        "properties": {"a": {"$ref": 3}, "b": {"$ref": "#/$defs"}},
    },
    "a reference to itself": {"$ref": "#", "title": "x"},
    "references in a ring": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "references that lead nowhere": {"$ref": "#/$defs/none", "$defs": {}, "title": "x"},
    "references abroad": {"$ref": "https://example.com/x#/$defs/a", "$defs": {"a": {"title": "a"}}},
    "deep": _deep(480),
    "too deep to write": _deep(3000),
    "a million characters": {"properties": {"a": {"description": "word  " * 170_000}}},
    "a hundred thousand spaces": {"properties": {"a": {"description": "a" + " " * 40_000 + "b", "enum": ["a"]}}},
    "many brackets": {"properties": {"a": {"description": "(" * 20_000 + " a, b", "enum": ["a", "b"], "default": "a"}}},
    "many stars": {"properties": {"a": {"description": "**a" * 13_000}}},
    "emoji": {"title": "🌦️", "properties": {"🌦️": {"title": "🌦️", "description": "🌦️ 天气  。"}}},
}


@pytest.mark.parametrize("parameters", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_schemas_end_in_time(parameters: Any) -> None:
    tool = Tool(name="天气", description="x  " * 30_000, parameters=parameters)
    started = time.process_time()
    after = compressed(tool)
    assert time.process_time() - started < 1
    assert tool_tokens(after) <= tool_tokens(tool)


def test_a_tool_counts_as_much_alone_as_in_a_conversation() -> None:
    tools = tuple(Tool(name=f"f{i}", description="Says hello.", parameters={"type": "object"}) for i in range(3))
    empty = Conversation(format="openai_chat", model="m", messages=(Message(role="user", blocks=(Text(text="x"),)),))
    whole = Conversation(format="openai_chat", model="m", messages=empty.messages, tools=tools)
    counted = count_tokens(whole) - count_tokens(empty)
    assert counted <= sum(map(tool_tokens, tools)) <= counted + 10 * len(tools)
    assert json.loads(definition(tools[0])) == ["f0", "Says hello.", {"type": "object"}]
