"""Which addresses a host has, and whether they are anybody's in the internet: a dataset must not be a way into the
network that the worker stands in."""

from __future__ import annotations

import ipaddress
import socket

from worker.sources.errors import Interrupted, SourceNotFound, SourceRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# what older versions of `ipaddress` count among the public ones
_INNER = tuple(
    map(ipaddress.ip_network, ("64:ff9b:1::/48", "fec0::/10", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24"))
)


def is_public(address: Address) -> bool:
    """Whether it is one of the internet, and so is what is embedded in it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    if any(address in network for network in _INNER if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def resolve(host: str, port: int, *, private: bool) -> list[str]:
    """The host's addresses, asked for once. Raises `SourceRefused` if one is not public, unless `private` ones are
    allowed; `SourceNotFound` for a name that is none; `Interrupted` where names cannot be asked for now."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Interrupted(f"the name {host} could not be looked up") from None
        raise SourceNotFound(f"there is no host {host}") from None
    except (OSError, UnicodeError):
        raise SourceNotFound(f"there is no host {host}") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    inner = [text for text in addresses if not is_public(ipaddress.ip_address(text))]
    if inner and not private:
        raise SourceRefused(
            f"the host {host} is at {inner[0]}, which is no address of the internet: it is refused as long as "
            "BILLHOOK_DATASET_PRIVATE_ADDRESSES is not set"
        )
    return addresses
