"""Sixty tools of one application, as large applications bring them: what a router has to choose from."""

from __future__ import annotations

from typing import Any

_ACTIONS = {
    "list": ("List {things} that match a filter, newest first.", {"filter": "string", "limit": "integer"}),
    "get": ("Return one {thing} with all its fields.", {"{thing}_id": "string", "with_history": "boolean"}),
    "create": ("Create a {thing} and return its identifier.", {"title": "string", "owner": "string", "tags": "array"}),
    "update": ("Change fields of an existing {thing}; others stay.", {"{thing}_id": "string", "changes": "object"}),
    "archive": ("Archive a {thing} so that it is no longer listed.", {"{thing}_id": "string", "reason": "string"}),
}
_THINGS = {
    "calendar": ("event", "meetings and appointments in the shared office calendar"),
    "invoice": ("invoice", "bills that were sent to customers, with their line items and due dates"),
    "inventory": ("article", "goods in the warehouse, with stock level and shelf"),
    "payroll": ("payslip", "monthly salaries of the staff"),
    "fleet": ("vehicle", "company cars, their drivers and services"),
    "helpdesk": ("ticket", "requests for support, with priority and assignee"),
    "crm": ("lead", "possible customers and the talks with them"),
    "greenhouse": ("sensor", "humidity and temperature sensors in the greenhouses"),
    "library": ("book", "books of the reading room, with borrower and return date"),
    "harbour": ("berth", "moorings for visiting yachts, with length and draught"),
    "museum": ("exhibit", "pieces of the collection, with room and insurance value"),
    "kennel": ("dog", "boarded animals, with feeding plan and vaccinations"),
}

KEPT = "calendar_create_event"
"""The request names it, so it is sent in full."""
LEFT_OUT = "kennel_archive_dog"
"""Nothing in the request is about it."""
ALSO_LEFT_OUT = "harbour_update_berth"
REQUEST = "Please use calendar_create_event to put my dentist appointment on Tuesday at nine into the calendar."


def sixty_tools() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> what it is for, and its JSON Schema, as in `asks.TOOLS`."""
    tools = {}
    for domain, (thing, about) in _THINGS.items():
        for action, (words, fields) in _ACTIONS.items():
            described = f"{words.format(thing=thing, things=thing + 's')} It works on {about}."
            schema = {
                "type": "object",
                "properties": {name.format(thing=thing): _field(kind, thing) for name, kind in fields.items()},
                "required": [next(iter(fields)).format(thing=thing)],
                "additionalProperties": False,
            }
            tools[f"{domain}_{action}_{thing}"] = (described, schema)
    return tools


def _field(kind: str, thing: str) -> dict[str, Any]:
    field: dict[str, Any] = {"type": kind, "description": f"A value of type {kind} that belongs to the {thing}."}
    if kind == "array":
        field["items"] = {"type": "string", "enum": ["urgent", "draft", "external", "confidential"]}
    return field
