"""What goes out, what comes back, and what happens when a provider misbehaves or a caller leaves."""

from __future__ import annotations

import asyncio
import gzip
import socket
from typing import Any

import pytest

from orqen_ray.errors import (
    BadRequest,
    ProviderNotConnected,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from orqen_ray.providers.forward import Timeouts
from orqen_ray.types import AwsCredentials, Credentials
from tests.providers.scripted import (
    CHUNKED_HEAD,
    call,
    forwarder,
    framed,
    lab,
    read,
    reply,
    say_nothing,
    say_one_thing,
    scripted,
)

KEY = Credentials(api_key="sk-upstream-secret")
# --- What goes out ------------------------------------------------------------------------------------------------


async def test_the_body_path_and_query_go_out_exactly_as_given() -> None:
    body = b'{"model" : "x",\n "unicode": "\xc3\xa9", "unknown": 1}'
    path = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fx/~a(b)"
    async with scripted(reply()) as server, forwarder(lab(f"{server.url}/some/prefix/"), lab=KEY) as upstream:
        await read(await upstream.send(call(path=path, query="beta=true&x=%20+%C3", body=body)))
    sent = server.requests[0]
    assert (sent.method, sent.target, sent.body) == ("POST", f"/some/prefix{path}?beta=true&x=%20+%C3", body)


async def test_only_allowed_headers_and_the_providers_own_go_out() -> None:
    headers = (
        ("authorization", "Bearer sk-orq-mine"),
        ("cookie", "a=b"),
        ("openai-beta", "x"),
        ("x-orqen-a", "b"),
        ("accept", "c/d"),
    )
    async with (
        scripted(reply()) as server,
        forwarder(lab(server.url, headers={"HTTP-Referer": "https://a.example", "Accept": "a/b"}), lab=KEY) as upstream,
    ):
        await read(await upstream.send(call(headers=headers)))
    sent = {name.lower(): value for name, value in server.requests[0].headers}
    assert sent.pop("user-agent").startswith("orqen-ray/")
    assert sent == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": "Bearer sk-upstream-secret",
        "openai-beta": "x",
        "http-referer": "https://a.example",
        "accept": "a/b",
        "content-type": "application/json",
        "content-length": "2",
        "accept-encoding": "identity",
    }


@pytest.mark.parametrize(
    ("row", "header", "value"),
    [
        ({"dialect": "openai"}, "authorization", "Bearer sk-upstream-secret"),
        ({"dialect": "anthropic"}, "x-api-key", "sk-upstream-secret"),
        ({"dialect": "openai", "auth": "api-key"}, "api-key", "sk-upstream-secret"),
        ({"dialect": "bedrock"}, "authorization", "Bearer sk-upstream-secret"),
        ({"dialect": "openai", "auth": "none"}, "authorization", None),
    ],
)
async def test_each_kind_of_row_sends_its_key_its_own_way(row: dict[str, Any], header: str, value: str | None) -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url, **row), lab=KEY) as upstream:
        await read(await upstream.send(call()))
    assert server.requests[0][header] == value


async def test_anthropic_gets_the_callers_version_and_betas_or_a_default_version() -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url, dialect="anthropic"), lab=KEY) as upstream:
        await read(await upstream.send(call()))
        headers = (("anthropic-version", "2099-01-01"), ("anthropic-beta", "a"), ("anthropic-beta", "b"))
        await read(await upstream.send(call(headers=headers)))
    assert server.requests[0]["anthropic-version"] == "2023-06-01"
    assert [pair for pair in server.requests[1].headers if pair[0].lower().startswith("anthropic")] == list(headers)


async def test_the_callers_own_credentials_come_first() -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        own = Credentials(api_key="sk-own", base_url="http://evil.example")
        await read(await upstream.send(call(credentials=own)))
        await read(await upstream.send(call(credentials=Credentials(region="eu-west-1"))))
    assert [request["authorization"] for request in server.requests] == ["Bearer sk-own", "Bearer sk-upstream-secret"]


async def test_a_stored_base_url_replaces_the_rows() -> None:
    async with (
        scripted(reply()) as server,
        forwarder(lab("http://127.0.0.1:9"), lab=Credentials(api_key="k", base_url=server.url)) as upstream,
    ):
        assert (await upstream.send(call())).status == 200


async def test_a_body_of_several_megabytes_arrives_whole() -> None:
    body = b'{"a":"' + b"x" * (5 << 20) + b'"}'
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        await read(await upstream.send(call(body=body)))
    assert server.requests[0].body == body


async def test_connections_are_kept_alive_and_reused() -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        for _ in range(3):
            answer = await upstream.send(call())
            await read(answer)
            await answer.aclose()
    assert (len(server.requests), server.connections) == (3, 1)


@pytest.mark.parametrize(
    "path", ["chat", "/a/../admin", "/a/%2e%2e/b", "/a?b", "/a#b", "/a b", "/a\r\nx: y", "/./a", "/a" * 99 + " "]
)
async def test_a_path_that_would_reach_elsewhere_is_refused(path: str) -> None:
    async with scripted(reply()) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        with pytest.raises(BadRequest):
            await upstream.send(call(path=path))
    assert not server.requests


async def test_a_region_that_is_no_region_never_becomes_a_host() -> None:
    async with forwarder({}, bedrock=KEY) as upstream:
        own = Credentials(aws=AwsCredentials(access_key_id="a", secret_access_key="b"), region="evil.example/#")
        with pytest.raises(BadRequest, match="AWS region"):
            await upstream.send(call(provider="bedrock", path="/model/x/converse", credentials=own))


async def test_a_key_that_cannot_be_a_header_is_refused_and_not_shown() -> None:
    async with forwarder(lab("http://127.0.0.1:9"), lab=Credentials(api_key="se\r\ncret")) as upstream:
        with pytest.raises(BadRequest) as caught:
            await upstream.send(call())
    assert "cret" not in caught.value.message


async def test_a_provider_without_what_it_needs_says_how_to_connect_it() -> None:
    async with forwarder({}, azure=KEY, groq=Credentials(region="x")) as upstream:
        with pytest.raises(ProviderNotConnected, match="orqen providers connect openai"):
            await upstream.send(call(provider="openai"))
        with pytest.raises(ProviderNotConnected, match=r"providers\.azure\.base_url"):
            await upstream.send(call(provider="azure"))
        with pytest.raises(ProviderNotConnected, match="groq"):
            await upstream.send(call(provider="groq"))
        with pytest.raises(BadRequest, match="nowhere"):
            await upstream.send(call(provider="nowhere"))


async def test_connected_are_those_with_credentials_and_configured_ones_that_need_none() -> None:
    async with forwarder({**lab("http://127.0.0.1:9"), "ollama": {}}, openai=KEY, gone=KEY) as upstream:
        assert await upstream.connected() == {"lab", "ollama", "openai", "sandbox"}


# --- What comes back ----------------------------------------------------------------------------------------------


async def test_an_answer_comes_back_as_it_arrives() -> None:
    release = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED_HEAD + framed(b"data: 1\n\n"))
        await release.wait()
        writer.write(framed(b"data: 2\n\n") + b"0\r\n\r\n")

    async with scripted(answer) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        got = await upstream.send(call(stream=True))
        chunks = aiter(got.chunks)
        assert (got.headers, await anext(chunks)) == ({"content-type": "text/event-stream"}, b"data: 1\n\n")
        release.set()
        assert [chunk async for chunk in chunks] == [b"data: 2\n\n"]


async def test_headers_of_the_connection_and_cookies_stay_behind() -> None:
    head = reply(body=b"{}", content_type="application/json", set_cookie="a=b", server="x", x_request_id="up")
    async with (
        scripted(head) as server,
        forwarder(lab(f"http://localhost:{server.port}"), lab=KEY) as upstream,
    ):
        answer = await upstream.send(call())
        await read(answer)
        await read(await upstream.send(call()))
    assert answer.headers == {"content-type": "application/json", "x-upstream-request-id": "up"}
    assert server.requests[1]["cookie"] is None


async def test_a_provider_that_compresses_anyway_is_read_plainly() -> None:
    packed = reply(body=gzip.compress(b'{"a": 1}'), content_encoding="gzip", content_type="application/json")
    async with scripted(packed) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        answer = await upstream.send(call())
        assert (await read(answer), answer.headers) == (b'{"a": 1}', {"content-type": "application/json"})


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
async def test_an_error_status_is_an_answer_like_any_other(status: int) -> None:
    refused = reply(status, b'{"error": "no"}', retry_after="7")
    async with scripted(refused) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        answer = await upstream.send(call())
        assert (answer.status, answer.headers["retry-after"], await read(answer)) == (status, "7", b'{"error": "no"}')
    assert len(server.requests) == 1


async def test_a_key_that_the_provider_echoes_in_an_error_is_taken_out() -> None:
    refused = reply(401, b'{"error": "bad key sk-upstream-secret!"}')
    async with scripted(refused) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        assert await read(await upstream.send(call())) == b'{"error": "bad key [redacted]!"}'


async def test_an_error_body_that_breaks_off_is_given_as_far_as_it_came() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\npart")
        await writer.drain()
        raise ConnectionResetError

    async with scripted(answer) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        got = await upstream.send(call())
        assert (got.status, await read(got)) == (500, b"part")


# --- Refusals -----------------------------------------------------------------------------------------------------


async def test_a_redirect_is_refused_and_never_followed() -> None:
    async with scripted(reply()) as target:
        moved = reply(307, b"", location=f"{target.url}/stolen")
        async with scripted(moved) as server, forwarder(lab(server.url), lab=KEY) as upstream:
            with pytest.raises(UpstreamRefused, match="redirect") as caught:
                await upstream.send(call())
        assert not target.requests and str(target.port) not in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_refused_in_any_spelling_before_a_byte_is_sent(host: str) -> None:
    async with scripted(reply()) as server:
        row = lab(f"http://{host}:{server.port}", allow_private_network=False)
        async with forwarder(row, lab=KEY) as upstream:
            with pytest.raises(UpstreamRefused, match="lab") as caught:
                await upstream.send(call())
    assert server.connections == 0 and host not in caught.value.message


async def test_the_metadata_service_is_refused_to_every_row() -> None:
    async with forwarder(lab("http://169.254.169.254"), lab=KEY) as upstream:
        with pytest.raises(UpstreamRefused):
            await upstream.send(call())


async def test_a_connection_of_a_private_row_is_not_lent_to_a_public_one() -> None:
    async with scripted(reply()) as server:
        rows = {**lab(server.url), "pub": {"dialect": "openai", "base_url": server.url}}
        async with forwarder(rows, lab=KEY, pub=KEY) as upstream:
            await read(await upstream.send(call()))
            with pytest.raises(UpstreamRefused):
                await upstream.send(call(provider="pub"))
    assert len(server.requests) == 1


# --- Failures -----------------------------------------------------------------------------------------------------


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_nobody_listening_is_unavailable_and_no_address_is_shown() -> None:
    port = _unused_port()
    async with forwarder(lab(f"http://127.0.0.1:{port}"), lab=KEY) as upstream:
        with pytest.raises(UpstreamUnavailable) as caught:
            await upstream.send(call())
    assert str(port) not in caught.value.message and caught.value.provider == "lab"


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    async with forwarder(lab("http://nowhere.invalid"), lab=KEY) as upstream:
        with pytest.raises(UpstreamUnavailable):
            await upstream.send(call())


async def test_a_connection_that_is_never_completed_times_out() -> None:
    async with scripted(say_nothing) as server:
        row = lab(server.url.replace("http", "https"))  # the handshake is waited for in vain
        async with forwarder(row, Timeouts(connect_s=0.05), lab=KEY) as upstream:
            with pytest.raises(UpstreamTimeout, match="connected"):
                await upstream.send(call())


@pytest.mark.parametrize(
    "answer", [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 40_000 + b"\r\n\r\n"]
)
async def test_an_answer_that_is_no_answer_is_the_providers_error(answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        raise ConnectionResetError

    async with scripted(script) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        with pytest.raises(UpstreamError):
            await upstream.send(call())
    assert len(server.requests) == 1, "a request that may have been served is not sent again here"


async def test_a_stream_that_breaks_off_raises_in_the_middle() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED_HEAD + framed(b"data: 1\n\n"))
        await writer.drain()
        raise ConnectionResetError

    async with scripted(answer) as server, forwarder(lab(server.url), lab=KEY) as upstream:
        chunks = aiter((await upstream.send(call())).chunks)
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(UpstreamUnavailable):
            await anext(chunks)


@pytest.mark.parametrize(
    ("timeouts", "deadline_s"),
    [(Timeouts(first_byte_s=0.05), None), (Timeouts(total_s=0.05), None), (Timeouts(), 0.05)],
)
async def test_a_silent_provider_times_out_and_its_connection_is_closed(
    timeouts: Timeouts, deadline_s: float | None
) -> None:
    async with scripted(say_nothing) as server, forwarder(lab(server.url), timeouts, lab=KEY) as upstream:
        with pytest.raises(UpstreamTimeout):
            await upstream.send(call(deadline_s=deadline_s))
        await asyncio.wait_for(server.closed.wait(), 1)


@pytest.mark.parametrize(
    ("timeouts", "deadline_s"), [(Timeouts(idle_s=0.05), None), (Timeouts(total_s=0.2), None), (Timeouts(), 0.2)]
)
async def test_a_stream_that_falls_silent_times_out_and_its_connection_is_closed(
    timeouts: Timeouts, deadline_s: float | None
) -> None:
    async with scripted(say_one_thing) as server, forwarder(lab(server.url), timeouts, lab=KEY) as upstream:
        chunks = aiter((await upstream.send(call(deadline_s=deadline_s))).chunks)
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(UpstreamTimeout):
            await anext(chunks)
        await asyncio.wait_for(server.closed.wait(), 1)
