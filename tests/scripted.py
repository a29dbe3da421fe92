"""A provider that does what its model's name says, and knows who hung up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAIN = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "plain",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


@dataclass(slots=True)
class ScriptedUpstream:
    """`url` is its root; `hung_up` is set, with the time, when a client leaves an endless stream."""

    url: str
    hung_up: threading.Event = field(default_factory=threading.Event)
    hung_up_at: float = 0.0


@contextmanager
def scripted_upstream() -> Iterator[ScriptedUpstream]:
    """Serve `plain` (one JSON answer) and `endless` (a stream that never stops) on loopback."""
    script = ScriptedUpstream(url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if body["model"] == "endless":
                self._endless()
            else:
                self._answer(json.dumps(PLAIN).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _endless(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            delta = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "endless", "choices": [delta]}
            try:
                while True:
                    self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                    time.sleep(0.02)  # a provider's pace, not a wait for something
            except OSError:
                script.hung_up_at = time.monotonic()
                script.hung_up.set()

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is the test's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
