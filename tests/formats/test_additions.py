"""Tools added among the messages of a body leave all that its caller wrote as it was spelled."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from orqen_ray.conversation import Conversation, JsonObject, Message, Text, Tool, ToolChange
from orqen_ray.formats.faithful import edited_fields
from orqen_ray.formats.registry import FORMATS
from orqen_ray.types import Capabilities

BODY = (
    b'{"model":"m", "max_tokens":5, "tools":[{"name":"a","input_schema":{"type":"object"}}], "messages":['
    b'{"content":"hi", "role":"user"}, {"role":"system", "content":"be good"}, {"role":"assistant", "content":"yes"},'
    b' {"role":"user", "content":[{"text":"so", "type":"text"}]}]}'
)
ADDED = ToolChange(action="add", name="b", tool=Tool(name="b", parameters={"type": "object"}))
WRITTEN = (
    b'{"type":"tool_addition","tool":{"type":"tool_definition",'
    b'"definition":{"name":"b","input_schema":{"type":"object"}}}}'
)


def written(messages: tuple[Message, ...]) -> list[JsonObject]:
    only = Conversation(format="anthropic_messages", model="", messages=messages)
    return list(FORMATS["anthropic_messages"].write_request(only, "", Capabilities()).body["messages"])


def test_an_answer_that_goes_on_stands_behind_all_else() -> None:
    payload = msgspec.json.decode(BODY)
    asked = FORMATS["anthropic_messages"].read_request(payload, None)
    said = Message(role="assistant", blocks=(Text(text="well"),))
    edited = replace(asked, messages=(*asked.messages, said), max_tokens=4)
    behind = b',{"role":"assistant","content":[{"type":"text","text":"well"}]}]'
    spelled = BODY[BODY.index(b'"messages":') + 11 : -2].replace(b"}, {", b"},{") + behind
    changed = edited_fields(BODY, payload, asked, edited, lambda tools: b"[]", written)
    assert changed == {"max_tokens": b"4", "messages": spelled}
    assert edited_fields(BODY, payload, asked, replace(edited, stop=("x",)), lambda tools: b"[]", written) is None


def test_an_addition_stands_alone_or_joins_a_system_message_that_is_there() -> None:
    payload = msgspec.json.decode(BODY)
    asked = FORMATS["anthropic_messages"].read_request(payload, None)
    messages = list(asked.messages)
    messages[1] = replace(messages[1], blocks=(*messages[1].blocks, ADDED), wire=None)
    messages.append(Message(role="system", blocks=(ADDED,)))
    edited = replace(asked, messages=tuple(messages))
    assert edited_fields(BODY, payload, asked, edited, lambda tools: b"[]", written) == {
        "messages": b'[{"content":"hi", "role":"user"},'
        b'{"role":"system","content":[{"type":"text","text":"be good"},' + WRITTEN + b"]},"
        b'{"role":"assistant", "content":"yes"},{"role":"user", "content":[{"text":"so", "type":"text"}]},'
        b'{"role":"system","content":[' + WRITTEN + b"]}]"
    }
