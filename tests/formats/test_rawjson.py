from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orqen_ray.errors import BadRequest
from orqen_ray.formats.rawjson import splice, strip_tool_extensions, top_level

BODY = b'{ "a" : 1.0e5 ,"b":[ 1,  2 ],\n"c":"\\u00e9\xc3\xa9", "model":"x" }'
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), JSON)
def test_a_splice_leaves_other_values_byte_identical_and_in_order(body: dict[str, object], value: object) -> None:
    raw = json.dumps(body, indent=1, ensure_ascii=True).encode()
    edited = splice(raw, {"model": json.dumps(value).encode()})
    assert json.loads(edited) == {**body, "model": value}
    before = {key: bytes(part) for key, part in top_level(raw).items() if key != "model"}
    after = {key: bytes(part) for key, part in top_level(edited).items() if key != "model"}
    assert list(after.items()) == list(before.items())


@pytest.mark.parametrize(("replace", "remove"), [({}, ()), ({"b": b"[ 1,  2 ]"}, ()), ({}, ("absent",))])
def test_a_splice_that_changes_nothing_returns_the_very_same_body(
    replace: dict[str, bytes], remove: tuple[str, ...]
) -> None:
    assert splice(BODY, replace, remove) is BODY


def test_fields_are_replaced_in_place_removed_and_appended() -> None:
    edited = splice(BODY, {"model": b'"y"', "new": b"{}"}, ["b"])
    assert edited == b'{"a":1.0e5,"c":"\\u00e9\xc3\xa9","model":"y","new":{}}'


@pytest.mark.parametrize("body", [b"[]", b"{", b"", b'{"a":1}}'])
def test_what_is_no_object_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        splice(body, {"a": b"1"})


def test_only_the_tools_that_carry_extensions_are_rewritten() -> None:
    plain = b'{"type" : "function", "function":{"name":"a", "x":1.0e2}}'
    marked = b'{"type":"function","function":{"name":"b","x-orqen-keep" : true,"x-orqen-examples":["e"],"p":{ "q":1}}}'
    body = b'{"model":"m","tools":[' + plain + b", " + marked + b'],"messages":[ ]}'
    clean = b'{"type":"function","function":{"name":"b","p":{ "q":1}}}'
    assert strip_tool_extensions(body) == b'{"model":"m","tools":[' + plain + b"," + clean + b'],"messages":[ ]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"tools":[{"type":"function","function":{"name":"a"}}]}',
        b'{"messages":[{"role":"user","content":"x-orqen-keep"}],"tools":[ ]}',
        b'{"tools":[{"type":"function","function":{"name":"x-orqen-keep"}}]}',
        b'{"tools":"x-orqen-keep"}',
        b'{"tools":[1,"x-orqen-keep",{"function":"x-orqen-keep"}]}',
        b'{"x-orqen-keep":',
    ],
)
def test_a_body_without_extensions_in_its_tools_comes_back_itself(body: bytes) -> None:
    assert strip_tool_extensions(body) is body
