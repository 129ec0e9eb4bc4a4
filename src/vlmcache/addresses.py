"""Addresses to listen on, networks that may connect, and Host headers that mean this machine."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import TypeAlias

from vlmcache.errors import UsageError
from vlmcache.units import short_text

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `9400`, `:9400`, `0.0.0.0:9400` or `[::1]:9400`.

    Without a host it is the loopback: other machines are answered only if an address is given.

    Raises:
        UsageError: the string is not an address.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        port = ""
    # Python refuses to read thousands of digits.
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise UsageError(
            f"--listen {short_text(text)} is not an address",
            "write PORT, ADDRESS:PORT or [ADDRESS]:PORT",
        )
    return host or "127.0.0.1", int(port)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that strings such as `192.168.1.0/24` or `10.0.0.7` mean.

    Raises:
        UsageError: one of them is not a network.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise UsageError(
                f"--allow {short_text(text)} is not a network", "write for example 192.168.1.0/24"
            ) from None
    return tuple(networks)


def parse_host(text: str) -> Address | None:
    """Return the address that a string is, IPv4 within IPv6 as IPv4; `None` if it is a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def in_address(host: str) -> str:
    """Return a host as it is written in an address: one of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    address = parse_host(host)
    return address is not None and address.is_loopback


def is_own_host(header: str, listened_on: str, reached_at: str) -> bool:
    """Return whether a Host header names what is listened on, or this machine.

    A browser that a foreign page has led here by its own name (DNS rebinding) sends that name.

    Args:
        header: the Host header's value.
        listened_on: the address or name that is listened on.
        reached_at: the address of this side of the connection.
    """
    name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
    name = name.rstrip(".").lower()
    if name in ("localhost", listened_on.lower(), socket.gethostname().lower()):
        return True
    address = parse_host(name)
    # A server that listens on all addresses may be reached at any: none is a foreign name.
    everywhere = parse_host(listened_on)
    return address is not None and (
        (everywhere is not None and everywhere.is_unspecified) or address == parse_host(reached_at)
    )
