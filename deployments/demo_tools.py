"""The tools of the demo: a weather tool and those of a small firm's office, as an application would list them."""

from __future__ import annotations

from typing import Any

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Current weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_THINGS = {
    "invoice": "invoice to a customer", "customer": "customer of the firm", "order": "order of a customer",
    "shipment": "parcel on its way", "refund": "refund of a payment", "product": "product in the catalog",
    "supplier": "supplier of goods", "contract": "contract with a partner", "employee": "employee of the firm",
    "meeting": "meeting in the calendar", "room": "meeting room", "ticket": "ticket of the help desk",
    "campaign": "campaign by mail", "report": "report for the board", "document": "document in the archive",
}  # fmt: skip
_ACTIONS = {
    "create": "Creates a new {thing}. Use it when there is none yet; look with find_{name} first.",
    "find": "Finds each {thing} that fits the words, dates and state given. Use it when the id is not known.",
    "update": "Changes the fields given of one {thing}, and leaves the others as they are.",
    "cancel": "Cancels one {thing} for good. Use it only when that was asked for in so many words.",
}
_FIELDS = {
    "create": ("title", "owner_id", "due_date", "amount"),
    "find": ("query", "from_date", "to_date", "state", "limit"),
    "update": ("id", "title", "owner_id", "due_date", "state"),
    "cancel": ("id", "reason"),
}
_FIELD_SCHEMAS: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "description": "Its id, as find_{name} gives it."},
    "title": {"type": "string", "description": "What it is called in lists; 80 characters at most.", "maxLength": 80},
    "owner_id": {"type": "string", "description": "The employee who looks after it."},
    "due_date": {"type": "string", "format": "date", "description": "When it is due, as YYYY-MM-DD."},
    "amount": {"type": "number", "minimum": 0, "description": "Its worth in euros, without tax."},
    "query": {"type": "string", "description": "Words that must occur in its title or notes."},
    "from_date": {"type": "string", "format": "date", "description": "The first day that counts, as YYYY-MM-DD."},
    "to_date": {"type": "string", "format": "date", "description": "The last day that counts, as YYYY-MM-DD."},
    "state": {"enum": ["open", "done", "late", "cancelled"], "description": "Only those in this state."},
    "limit": {"type": "integer", "default": 20, "description": "How many at most. Defaults to 20."},
    "reason": {"type": "string", "description": "Why, in a sentence that the customer may read."},
}
_REQUIRED = {"create": ["title"], "find": ["query"], "update": ["id"], "cancel": ["id", "reason"]}


def many_tools() -> list[dict[str, Any]]:
    """61 tools in OpenAI's format."""
    return [{"type": "function", "function": function} for function in (WEATHER, *_office())]


def _office() -> list[dict[str, Any]]:
    return [
        {
            "name": f"{action}_{name}",
            "description": says.format(name=name, thing=thing),
            "parameters": {
                "type": "object",
                "title": f"{action}_{name}Arguments",
                "properties": {field: _field(field, name) for field in _FIELDS[action]},
                "required": _REQUIRED[action],
                "additionalProperties": False,
            },
        }
        for name, thing in _THINGS.items()
        for action, says in _ACTIONS.items()
    ]


def _field(field: str, name: str) -> dict[str, Any]:
    schema = _FIELD_SCHEMAS[field]
    title = field.replace("_", " ").title()
    return {**schema, "title": title, "description": schema["description"].format(name=name)}
