"""The trace log of a whole gateway: an ingress process is killed, the gateway is stopped, and no row is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx

from orqen_ray.traces.reader import read_traces
from orqen_ray.traces.spool import has_rows
from tests.conftest import running_gateway

ASK = {"model": "sandbox/echo", "messages": [{"role": "user", "content": "hello"}]}


def ask(client: httpx.Client, first: int, count: int) -> list[str]:
    """The request ids of the answers that came whole, plain and streamed in turn."""
    answered = []
    for number in range(first, first + count):
        request_id = f"trace-{number}"
        try:
            answer = client.post(
                "/v1/chat/completions",
                json={**ASK, "stream": number % 2 == 1},
                headers={"x-request-id": request_id},
            )
        except httpx.HTTPError:  # the process is gone, and its successor not yet there
            continue
        if answer.status_code == 200:
            answered.append(request_id)
    return answered


def test_rows_outlive_their_process_and_a_stop(tmp_path: Path) -> None:
    with running_gateway(tmp_path, {"ingress": {"min_replicas": 2, "max_replicas": 2}}) as gateway:
        headers = {"authorization": f"Bearer {gateway.admin_key}"}
        with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as client:
            answered = ask(client, 0, 40)
            gateway.replica("Ingress").kill()
            rows = Counter(read_traces(f"{tmp_path}/traces")["request_id"].to_pylist())
            assert [each for each in answered if rows[each] != 1] == []
            answered += ask(client, 40, 200)
    rows = Counter(read_traces(f"{tmp_path}/traces")["request_id"].to_pylist())
    assert len(answered) > 150 and [each for each in answered if rows[each] != 1] == []
    assert max(rows.values()) == 1
    assert not has_rows(tmp_path / "traces" / ".spool"), "an orderly stop ships everything"
