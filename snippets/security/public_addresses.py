"""Which addresses belong to the public internet.

The table is our own, made from the IANA special-purpose registries (RFC 6890), so that every Python
gives the same answer: `ipaddress.is_private` and `is_global` have changed theirs.
"""

from __future__ import annotations

import ipaddress

_REFUSED_V4 = [
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598), and the metadata of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of a virtual machine on Azure, in a public range
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation, as 198.51.100.0/24 and 203.0.113.0/24
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
# Of IPv6, only 2000::/3 has been given to the public. Outside it are ::, ::1, ::/96, fc00::/7,
# fe80::/10, fec0::/10, ff00::/8, 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052: IPv4 in disguise).
_GIVEN_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = [
    ipaddress.IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: IPv4 in disguise
        "3fff::/20",  # documentation
    )
]


def is_public(ip: str) -> bool:
    """Tell whether `ip` is an address of the public internet. False for what is no address."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False  # a zone ("%eth0") belongs to a link
        if address.ipv4_mapped is None:
            return address in _GIVEN_V6 and not any(address in net for net in _REFUSED_V6)
        address = address.ipv4_mapped  # ::ffff:10.0.0.1 connects to 10.0.0.1
    return not any(address in net for net in _REFUSED_V4)
