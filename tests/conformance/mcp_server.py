"""An MCP server on standard input and output, with the sixty tools: `python -m tests.conformance.mcp_server`."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.conformance.toolset import sixty_tools


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a request; whatever a tool is called with, it says that it is done."""
    match method:
        case "initialize":
            server = {"name": "office", "version": "1"}
            return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
        case "tools/list":
            tools = sixty_tools().items()
            return {"tools": [{"name": n, "description": words, "inputSchema": s} for n, (words, s) in tools]}
        case "tools/call":
            return {"content": [{"type": "text", "text": f"{params['name']} is done."}]}
    return {}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            result = answer(request["method"], request.get("params") or {})
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
