"""Scripted models that decide what to do by what they see: above all those that need a tool which was left out."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.conformance.scenarios import SCRIPTS, THOUGHT, Called, Script, Seen, Tokens
from tests.conformance.toolset import ALSO_LEFT_OUT, KEPT, LEFT_OUT

MORE_TOOLS = "orqen_more_tools"
LOOK = "I will look for it. "
CANNOT = "I cannot do that."
DONE = "All is done."
UNKNOWN = "no_such_tool"
ARGUMENTS = {"dog_id": "Zür-7 🐕", "reason": "adopted"}
PIECES = ('{"dog_', 'id": "Zür-7', ' 🐕", "reason"', ': "adopted"}')
ASKING, CALLING = Tokens(fresh=100, read=300, out=5), Tokens(fresh=140, read=300, out=9)

VARIANTS = ("first", "text", "beside", "twice", "both", "unknown", "never", "late", "late-text", "straight")
"""When it asks: before anything else (or after thinking, when the caller wants that), after visible text, beside a
real call, for a second tool when it has the first, for two at once, for one that does not exist, not at all, after
another call, after that and visible text, and never, because it calls what it has only read of."""


def script_of(model: str, seen: Seen) -> Script:
    """The script of a model id. An id without one answers like `plain`, whatever it is asked."""
    if model == "coding-agent":
        return coding_agent(seen)
    if model.startswith("asks-"):
        return asking(model.removeprefix("asks-"), seen)
    return SCRIPTS.get(model, SCRIPTS["plain"])


def coding_agent(seen: Seen) -> Script:
    """A model that reads the file whose path the user gave, uses a tool for dogs if there is one, and tells all."""
    results = [part[2] for _, parts in seen.turns for part in parts if part[0] == "result"]
    first_call = len(seen.parts("call"))
    offered = json.dumps([seen.described, seen.tools]).replace("\\n", " ")
    if len(results) == 1 and (found := re.search(rf"\w+{LEFT_OUT}\b", offered)):
        call = Called(found[0], PIECES) if found[0] in seen.tools else _ask(found[0], seen)
        return Script(calls=(call,), stop="tools", first_call=first_call)
    if results:
        return Script(text=f"The tools say: {', '.join(results)}")
    asked = " ".join(part[1] for role, parts in seen.turns if role == "user" for part in parts if part[0] == "text")
    found = re.search(r"(/\S+\.txt)", asked)
    if found is None or not seen.tools:
        return Script(text="a title")  # a side call of the agent
    if "Read" not in seen.tools:
        return Script(calls=(_ask("Read", seen),), stop="tools")
    arguments = json.dumps({"file_path": found[1]})
    return Script(text="I will read it.", calls=(Called("Read", (arguments[:9], arguments[9:])),), stop="tools")


def asking(variant: str, seen: Seen) -> Script:
    """What a model does that has to call `LEFT_OUT` twice, and one that asks `late`, `KEPT` before that."""
    needs = (KEPT, LEFT_OUT, LEFT_OUT) if variant.startswith("late") else (LEFT_OUT, LEFT_OUT)
    names = {id_: name for id_, name, _ in seen.parts("call")}
    done = [result for result in seen.parts("result") if names[result[0]] in needs]
    thought = THOUGHT if seen.thinks else ""
    first_call = len(names)
    if len(done) == len(needs):
        return Script(thought=thought, text=DONE, tokens=CALLING)
    wanted = needs[len(done)]
    asked = [name for name in _asked_for(variant, wanted) if name == UNKNOWN or name not in seen.tools]
    calls: tuple[Called, ...]
    if wanted in seen.tools and (variant != "twice" or not asked):
        calls, text, tokens = (_call(wanted),), "", CALLING
    elif variant == "never":
        return Script(thought=thought, text=CANNOT, tokens=CALLING)
    elif variant == "straight":
        calls, text, tokens = (_call(wanted),), "", ASKING
    else:
        asks = [_ask(name, seen) for name in (asked[:1] if variant == "twice" else asked)]
        calls = (_call(KEPT), *asks) if variant == "beside" else tuple(asks)
        text, tokens = LOOK if variant.endswith("text") else "", ASKING
    return Script(thought=thought, text=text, calls=calls, stop="tools", tokens=tokens, first_call=first_call)


def _asked_for(variant: str, wanted: str) -> tuple[str, ...]:
    if variant in ("twice", "both"):
        return (wanted, ALSO_LEFT_OUT)
    return (UNKNOWN,) if variant == "unknown" else (wanted,)


def _call(name: str) -> Called:
    return Called(name, PIECES if name == LEFT_OUT else ('{"title": "dentist"}',))


def _ask(name: str, seen: Seen) -> Called:
    """A call of the index, with the arguments that its own schema wants, if it lists the tool."""
    index = seen.tools.get(MORE_TOOLS, {"properties": {}})
    if name not in json.dumps([seen.described, index]) and name != UNKNOWN:
        return Called(f"{name}_is_nowhere", ("{}",))
    [(field, schema)] = index["properties"].items()
    value: Any = [name] if schema["type"] == "array" else name
    arguments = json.dumps({field: value})
    return Called(MORE_TOOLS, (arguments[:7], arguments[7:]))
