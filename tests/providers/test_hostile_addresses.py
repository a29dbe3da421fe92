"""An address that is not public is never connected to, however it is written, and whatever DNS says at which moment."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from orqen_ray.errors import GatewayError, UpstreamRefused
from orqen_ray.providers.catalog import check_base_url, load_catalog
from orqen_ray.providers.forward import Forwarder, Timeouts
from orqen_ray.types import Credentials
from tests.providers.scripted import FixedCredentials, call, forwarder, lab, read, reply, scripted

KEY = Credentials(api_key="sk-upstream-secret")
UNUSABLE = [
    "http://user@127.0.0.1", "http://user:pass@public.example", "http://public.example@127.0.0.1",
    "http://127.0.0.1\\@public.example", "http://public.example\\.127.0.0.1", "http://127.0.0.1#public.example",
    "http://127.0.0.1/#", "http://127.0.0.1?public.example", "http://127.0.0.1 ", " http://127.0.0.1",
    "http://127.0.0.1\t", "http://127.0.0.1\n", "http://127.0.0.1\r\nhost: x", "http://127.0.0.1\x00", "http://12７.0.0.1",
    "http://127。0。0。1", "http://localhost．", "http://ⓛocalhost", "http://[::1", "http://::1", "http://[::1]x",
    "http://127.0.0.1:", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://127.0.0.1:1x", "http://", "http:///x",
    "http:127.0.0.1", "//127.0.0.1", "127.0.0.1", "file:///etc/passwd", "gopher://127.0.0.1", "unix:///run/x", "HTTP:",
    "http://%6c%6fcalhost", "http://127.0.0.1%00.example", "http://127.0.0.1%2f.example", "http://[fe80::1%25lo]",
    "http://[fe80::1%lo]", "http://a..b", f"http://{'a' * 64}.example", f"http://{'a.' * 127}example", "http://.", "http://..",
    "http://[v1.x]", "http://exa mple", "http://exa<mple", "http://exa|mple", "http://exa;mple", "http://exa'mple",
    "http://{region}.{other}.example", "http://{x}",
]  # fmt: skip
LOOPBACK = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7F.0x0.0x0.0x1", "0177.0.0.1",
    "017700000001", "0177.1", "127.0.0.1.", "127.255.255.254", "0", "0.0.0.0", "0x0", "localhost", "LOCALHOST",
    "localhost.", "ip6-localhost", "localhost.localdomain", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
]  # fmt: skip


@pytest.mark.parametrize("url", UNUSABLE)
async def test_what_is_no_plain_address_is_refused_wherever_it_comes_from(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        check_base_url(url)
    with pytest.raises(ValueError, match="lab"):
        load_catalog({"lab": {"dialect": "openai", "base_url": url}})
    async with forwarder(lab("http://127.0.0.1:9"), lab=Credentials(api_key="k", base_url=url)) as upstream:
        with pytest.raises(UpstreamRefused, match="lab"):
            await upstream.send(call())


@pytest.mark.parametrize("url", ["https://bücher.example", "https://xn--bcher-kva.example"])
def test_a_name_in_another_script_must_be_given_as_dns_knows_it(url: str) -> None:
    if url.isascii():
        assert check_base_url(url) == url
    else:
        with pytest.raises(ValueError, match="ASCII"):
            check_base_url(url)


@pytest.mark.parametrize("host", LOOPBACK)
async def test_loopback_in_any_spelling_is_not_connected_to(host: str) -> None:
    async with scripted(reply()) as server:
        row = lab(f"http://{host}:{server.port}", allow_private_network=False)
        async with forwarder(row, Timeouts(connect_s=5), lab=KEY) as upstream:
            with pytest.raises(GatewayError) as caught:
                await upstream.send(call())
        assert server.connections == 0 and "127" not in caught.value.message


class Names(AbstractResolver):
    """DNS by script: each question gets the next answer, the last one again and again."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def resolving(names: Names, base_url: str, *, private: bool) -> AsyncIterator[Forwarder]:
    catalog = load_catalog(lab(base_url, allow_private_network=private))
    upstream = Forwarder(catalog, FixedCredentials(lab=KEY), Timeouts(connect_s=0.3), resolver=names)
    try:
        yield upstream
    finally:
        await upstream.aclose()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00:ec2::254"]
)
async def test_a_public_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    async with (
        scripted(reply()) as server,
        resolving(Names([address]), f"http://public.example:{server.port}", private=False) as upstream,
    ):
        with pytest.raises(UpstreamRefused, match="not allowed"):
            await upstream.send(call())
        assert server.connections == 0


async def test_a_rebound_name_is_refused_at_the_socket_and_not_at_the_name() -> None:
    """The row's first connection was right; DNS then says another address, as for a rebinding attack."""
    private_first = Names(["127.0.0.1"], ["169.254.169.254"])
    async with scripted(reply()) as server:
        url = f"http://rebound.example:{server.port}"
        async with resolving(private_first, url, private=True) as upstream:
            assert await read(await upstream.send(call())) == b"{}"
            await upstream.aclose()  # its names and connections are forgotten: DNS is asked again
            with pytest.raises(UpstreamRefused, match="not allowed"):
                await upstream.send(call())
        assert private_first.asked == 2 and server.connections == 1


@pytest.mark.parametrize(
    "answers",
    [
        ["240.0.0.1", "127.0.0.1"],
        ["::1", "127.0.0.1"],
        ["192.88.99.1", "127.0.0.1"],  # public, and nobody is there
        ["127.0.0.1", "192.88.99.1"],
    ],
)
async def test_of_a_mixed_answer_the_private_part_is_never_used(answers: list[str]) -> None:
    async with (
        scripted(reply()) as server,
        resolving(Names(answers), f"http://mixed.example:{server.port}", private=False) as upstream,
    ):
        for _ in range(2):
            with pytest.raises(GatewayError) as caught:
                await upstream.send(call())
            assert "127.0.0.1" not in caught.value.message
        assert server.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "//evil", "/x", ""]
)
async def test_a_redirect_is_not_followed_wherever_it_leads(status: int, location: str) -> None:
    async with (
        scripted(reply(status, b"", location=location)) as server,
        forwarder(lab(server.url), lab=KEY) as upstream,
    ):
        with pytest.raises(UpstreamRefused, match="redirect") as caught:
            await upstream.send(call())
    assert len(server.requests) == 1 and "169" not in caught.value.message


@given(st.text(st.sampled_from("abz019.-_:/@\\?#[]%{} \t\r\n\x00é。"), max_size=30))
def test_a_url_that_passes_has_one_host_for_every_reader(rest: str) -> None:
    try:
        url = check_base_url(f"http://{rest}")
    except ValueError:
        return
    host = urlsplit(url).hostname
    assert URL(url, encoded=True).host == host and host is not None
    assert URL(f"{url}/chat", encoded=True).raw_path.endswith("/chat")
