"""Which network addresses a provider may have, checked on the address that a socket is about to connect to."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

_NAT64 = IPv6Network("64:ff9b::/96")
# The cloud's metadata service hands out the machine's own credentials; the link-local rule covers 169.254.169.254.
_METADATA = frozenset({ip_address("fd00:ec2::254"), ip_address("100.100.100.200")})


class AddressRefused(OSError):
    """The resolved address is not one that the provider's row allows."""


def public_socket(info: AddrInfo) -> socket.socket:
    """A socket for `info`.

    Raises:
        AddressRefused: the address is not a public one.
    """
    return _checked(info, is_public)


def private_socket(info: AddrInfo) -> socket.socket:
    """A socket for `info`, on a private network or this host too.

    Raises:
        AddressRefused: the address is link-local, or a cloud's metadata service.
    """
    return _checked(info, lambda address: not _is_link_local(_embedded(address)))


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether `address` is a public unicast one, also by the IPv4 address that an IPv6 one stands for."""
    embedded = _embedded(address)
    return embedded.is_global and not (
        embedded.is_multicast
        or embedded.is_reserved
        or (isinstance(embedded, IPv6Address) and embedded.is_site_local)
        or _is_link_local(embedded)
    )


def _is_link_local(address: IPv4Address | IPv6Address) -> bool:
    return address.is_link_local or address in _METADATA


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside an IPv4-mapped, 6to4, Teredo or NAT64 one; else `address`."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def _checked(info: AddrInfo, allows: Callable[[IPv4Address | IPv6Address], bool]) -> socket.socket:
    family, kind, protocol, _, where = info
    if family not in (socket.AF_INET, socket.AF_INET6) or not allows(ip_address(str(where[0]).partition("%")[0])):
        raise AddressRefused("address not allowed")
    return socket.socket(family=family, type=kind, proto=protocol)
