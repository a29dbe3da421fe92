"""A provider's address is public, in whatever form it is written, unless its row allows a private one."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from orqen_ray.providers.addresses import AddressRefused, AddrInfo, is_public, private_socket, public_socket

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0",
    "255.255.255.255", "224.0.0.1", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fc00::1",
    "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "2001:db8::1",
    "fd00:ec2::254", "100.100.100.200",
]  # fmt: skip
METADATA = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "fd00:ec2::254",
    "64:ff9b::a9fe:a9fe",
]


def _info(address: str) -> AddrInfo:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 443)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(AddressRefused):
        public_socket(_info(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_a_public_address_gets_a_socket(address: str) -> None:
    assert is_public(ip_address(address))
    if ":" not in address:
        public_socket(_info(address)).close()


@pytest.mark.parametrize("address", METADATA)
def test_no_row_may_reach_the_metadata_service(address: str) -> None:
    with pytest.raises(AddressRefused):
        private_socket(_info(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "192.168.0.9"])
def test_a_row_that_allows_it_reaches_a_private_network(address: str) -> None:
    private_socket(_info(address)).close()


def test_a_unix_socket_is_no_address() -> None:
    with pytest.raises(AddressRefused):
        private_socket((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("/run/x",)))
