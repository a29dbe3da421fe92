"""What would be sent for a request, and why: nothing is forwarded, and nothing remembered."""

from __future__ import annotations

from typing import Any

import msgspec

from orqen_ray.candidates import Asked, Inbound
from orqen_ray.conversation import JsonObject
from orqen_ray.exchange import Exchange
from orqen_ray.formats.faithful import request_credentials
from orqen_ray.formats.reading import decode_object
from orqen_ray.gateway import Gateway
from orqen_ray.planning.plan import Plan


async def preview(gateway: Gateway, inbound: Inbound) -> JsonObject:
    """The plan, a verdict for each tool, and the body that the provider would get.

    Raises:
        GatewayError: the request cannot be read, no provider owns the model, or this one cannot take the request.
    """
    payload = decode_object(inbound.body)
    conversation = gateway.read(inbound, payload)
    target = await gateway.resolve(conversation.model)
    plan = await gateway.plan(inbound, conversation, target, keep=False)
    exchange = Exchange(
        request_id=inbound.request_id, key_id=inbound.key_id, session_id="", inbound_format=inbound.format.name
    )
    credentials = request_credentials(payload) if inbound.format.name == "openai_chat" else None
    asked = Asked(
        inbound=inbound, payload=payload, conversation=conversation, exchange=exchange, credentials=credentials
    )
    candidate = gateway.candidates.build(asked, target, plan)
    return {
        "format": inbound.format.name,
        "provider": target.provider.name,
        "model": target.model_id,
        **_decision(plan),
        "tools": _tools(plan),
        "dropped": list(candidate.dropped),
        "body": msgspec.Raw(candidate.call.body),
    }


def _decision(plan: Plan) -> JsonObject:
    return {
        "arm": plan.pin.arm if plan.pin is not None else "whole",
        "reason": plan.undone or plan.reason,
        "method": plan.method if plan.routed else None,
        "p_miss": plan.routing.p_miss if plan.routing is not None else None,
        "pin": plan.pin_state,
        "edited": plan.edited,
        "tools_input": len(plan.asked.tools),
        "tools_output": plan.tools_output,
        "tool_tokens_input": plan.tool_tokens_in,
        "tool_tokens_output": plan.tool_tokens_out,
    }


def _tools(plan: Plan) -> list[dict[str, Any]]:
    """A verdict for each tool of the caller: of this decision, else what the pin says."""
    if plan.routing is not None:
        return [
            {"name": each.name, "kept": each.kept, "reason": each.reason, "score": each.score}
            for each in plan.routing.verdicts
        ]
    left_out = frozenset(plan.pin.indexed) - {*plan.restored} if plan.routed and plan.pin is not None else frozenset()
    return [
        {"name": tool.name, "kept": tool.name not in left_out, "reason": "pinned" if left_out else plan.reason}
        for tool in plan.asked.tools
    ]
