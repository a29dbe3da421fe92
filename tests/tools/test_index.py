"""The index: one line for each tool that was left out, and a tolerant ear for who asks."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orqen_ray.conversation import Tool
from orqen_ray.tools.index import MORE_TOOLS, asked_names, index_tool, line_of

TOOLS = st.builds(
    Tool,
    name=st.text(min_size=1, max_size=40),
    description=st.one_of(st.none(), st.text(max_size=400)),
    parameters=st.dictionaries(st.text(max_size=9), st.integers(), max_size=9),
)


@settings(max_examples=50)
@given(TOOLS)
def test_a_line_is_one_line_and_never_longer_than_its_tool(tool: Tool) -> None:
    line = line_of(tool)
    assert line == line_of(tool) and line.splitlines() in ([line], [])
    size = len(tool.name) + len(tool.description or "") + len(msgspec.json.encode(tool.parameters))
    assert len(line) <= size and len(line) <= len(tool.name) + 80
    assert line.startswith(" ".join(tool.name.split())) or not tool.name.isprintable()
    line.encode()


def test_a_small_tool_gets_a_short_line() -> None:
    said = "Find hotels in a city between two dates, by price, by stars and by what guests say of them"
    small = Tool(name="find", description=said, parameters={})
    large = Tool(name="find", description=said + ". " + "More. " * 99, parameters={"properties": {"x": "y" * 600}})
    assert len(line_of(small)) < 20 < 60 < len(line_of(large)) <= 80
    assert line_of(large).startswith("find: Find hotels in a city between two dates")


@settings(max_examples=30)
@given(st.lists(TOOLS, max_size=5))
def test_the_index_has_the_same_bytes_for_the_same_tools(tools: list[Tool]) -> None:
    index = index_tool(tools)
    assert index.name == MORE_TOOLS and index == index_tool(tools)
    assert index.parameters is not None and index.description is not None and len(index.description) <= 1024
    listed = index.parameters["properties"]["names"]["description"].split("\n", 1)[1].split("\n")
    assert listed == ([line_of(tool) for tool in tools] or [""])
    assert "enum" not in msgspec.json.encode(index.parameters).decode() or any("enum" in str(tool) for tool in tools)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ('{"names":["a","b","a"]}', ("a", "b")),
        ('{"names":"a, b"}', ("a", "b")),
        ('{"names":"[\\"a\\", \\"b\\"]"}', ("a", "b")),
        ('{"name":"a"}', ("a",)),
        ('{"tools":[{"name":" a "}]}', ("a",)),
        ('["a"]', ("a",)),
        ('"a"', ("a",)),
        ("a", ()),
        ('{"names":["a","b', ("a",)),
        ("", ()),
        ("{}", ()),
        ('{"names":[1,null,""]}', ()),
        ("[" * 99_999, ()),
    ],
)
def test_names_are_found_in_whatever_a_model_writes(arguments: str, names: tuple[str, ...]) -> None:
    assert asked_names(arguments) == names


@given(st.text())
def test_nothing_that_a_model_writes_is_an_error(arguments: str) -> None:
    assert all(asked_names(arguments))
