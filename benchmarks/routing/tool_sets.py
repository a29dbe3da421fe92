"""Tool sets of any size that look like those of real servers; the same seed gives the same set."""

from __future__ import annotations

import random
from typing import Any

_SERVERS = {
    "github": ("pull request", "issue", "branch", "release", "commit", "workflow run", "review comment", "label"),
    "jira": ("ticket", "sprint", "board", "epic", "worklog", "project version", "watcher"),
    "slack": ("message", "channel", "thread reply", "reaction", "user group", "reminder"),
    "calendar": ("event", "attendee", "meeting room", "free slot", "time zone"),
    "stripe": ("invoice", "refund", "subscription", "payment method", "coupon", "dispute", "payout"),
    "warehouse": ("shipment", "stock level", "purchase order", "supplier", "pallet", "return label"),
    "postgres": ("table", "query plan", "index", "row", "migration", "role", "view"),
    "travel": ("flight", "hotel booking", "rental car", "seat", "itinerary", "visa rule"),
    "crm": ("lead", "contact", "deal", "pipeline stage", "account owner", "call note"),
    "metrics": ("dashboard", "alert rule", "time series", "incident", "on-call shift"),
}
_VERBS = {
    "list": "List every {thing} of {server} that matches a filter, newest first.",
    "get": "Get one {thing} of {server} by its id, with all of its fields.",
    "create": "Create a new {thing} in {server} and return its id.",
    "update": "Change fields of an existing {thing} in {server}; fields that are left out stay as they are.",
    "delete": "Delete a {thing} from {server}. This cannot be undone.",
    "search": "Search {server} for a {thing} by words in its title or text.",
    "export": "Export each {thing} of {server} in a date range as CSV.",
    "assign": "Assign a {thing} of {server} to a person or a team.",
}
_PARAMETERS = {
    "id": {"type": "string", "description": "The id, as other calls of this server return it."},
    "query": {"type": "string", "description": "Words to look for; quotes keep a phrase together."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "description": "How many to return at most."},
    "status": {
        "type": "string",
        "enum": ["open", "closed", "draft", "archived"],
        "description": "Only of this status.",
    },
    "since": {"type": "string", "format": "date-time", "description": "Only what changed after this time, in UTC."},
    "owner": {"type": "string", "description": "Login name of the person or team who is responsible."},
    "fields": {"type": "array", "items": {"type": "string"}, "description": "Names of the fields to return."},
    "notify": {"type": "boolean", "description": "Whether people who watch it are told by mail."},
}


def tool_set(size: int, seed: int = 0) -> list[dict[str, Any]]:
    """`size` tools in OpenAI's form; two seeds give sets with no definition in common."""
    draw = random.Random(seed)
    pairs = [(server, thing, verb) for server, things in _SERVERS.items() for thing in things for verb in _VERBS]
    draw.shuffle(pairs)
    return [_tool(draw, seed, number, *pairs[number % len(pairs)]) for number in range(size)]


def request_for(tool: dict[str, Any], number: int) -> str:
    """What a person might write who needs `tool`; another text for each number."""
    words = tool["function"]["name"].split("__", 1)[1].rsplit("_v", 1)[0].replace("_", " ")
    return f"Case {number}: please {words} for the team in Oslo, and tell me briefly what came of it."


def _tool(draw: random.Random, seed: int, number: int, server: str, thing: str, verb: str) -> dict[str, Any]:
    names = draw.sample(sorted(_PARAMETERS), draw.randint(2, 5))
    description = f"{_VERBS[verb].format(thing=thing, server=server)} Edition {seed} of the service."
    return {
        "type": "function",
        "function": {
            "name": f"{server}__{verb}_{thing.replace(' ', '_').replace('-', '_')}_v{number}",
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {name: _PARAMETERS[name] for name in names},
                "required": names[:1],
                "additionalProperties": False,
            },
        },
    }
