"""Every range of the IANA's registries of special-purpose addresses, independent of Python's own lists."""

from ipaddress import ip_address, ip_network

import pytest

from mycelia.proto.admission.address_ranges import is_public, may_tell, unwrapped

OPEN, PRIVATE, LOOPBACK, CUSTOMER, TRANSLATED = map(
    ip_address, ("9.9.9.9", "192.168.7.7", "127.0.0.2", "100.64.1.1", "64:ff9b:1::909:909")
)
NOBODY, LOCAL, SELF = "", "private loopback", "loopback"
SHARED = "private loopback customer"
ANYBODY = "open private loopback customer translated unknown"

SPECIAL = [
    ("0.0.0.0/8", NOBODY),
    ("10.0.0.0/8", LOCAL),
    ("100.64.0.0/10", SHARED),
    ("127.0.0.0/8", SELF),
    ("169.254.0.0/16", NOBODY),
    ("172.16.0.0/12", LOCAL),
    ("192.0.0.0/24", LOCAL),
    ("192.0.0.0/29", LOCAL),
    ("192.0.0.8/32", LOCAL),
    ("192.0.0.9/32", LOCAL),
    ("192.0.0.10/32", LOCAL),
    ("192.0.0.170/31", LOCAL),
    ("192.0.2.0/24", LOCAL),
    ("192.31.196.0/24", ANYBODY),
    ("192.52.193.0/24", ANYBODY),
    ("192.88.99.0/24", LOCAL),
    ("192.168.0.0/16", LOCAL),
    ("192.175.48.0/24", ANYBODY),
    ("198.18.0.0/15", LOCAL),
    ("198.51.100.0/24", LOCAL),
    ("203.0.113.0/24", LOCAL),
    ("224.0.0.0/4", NOBODY),
    ("240.0.0.0/4", NOBODY),
    ("255.255.255.255/32", NOBODY),
    ("::1/128", SELF),
    ("::/128", NOBODY),
    ("::ffff:127.0.0.0/104", SELF),
    ("::ffff:10.0.0.0/104", LOCAL),
    ("::127.0.0.0/104", SELF),
    ("::192.168.0.0/112", LOCAL),
    ("64:ff9b::127.0.0.0/104", SELF),
    ("64:ff9b::10.0.0.0/104", LOCAL),
    ("64:ff9b:1::/48", LOCAL),
    ("100::/64", LOCAL),
    ("100:0:0:1::/64", LOCAL),
    ("2001::/23", LOCAL),
    ("2001::/32", LOCAL),
    ("2001:1::1/128", LOCAL),
    ("2001:2::/48", LOCAL),
    ("2001:3::/32", LOCAL),
    ("2001:4:112::/48", LOCAL),
    ("2001:10::/28", LOCAL),
    ("2001:20::/28", LOCAL),
    ("2001:30::/28", LOCAL),
    ("2001:db8::/32", LOCAL),
    ("2002:7f00::/24", SELF),
    ("2002:c0a8::/32", LOCAL),
    ("2002:808:800::/40", ANYBODY),
    ("2620:4f:8000::/48", ANYBODY),
    ("3fff::/20", LOCAL),
    ("5f00::/16", LOCAL),
    ("fc00::/7", LOCAL),
    ("fe80::/10", NOBODY),
    ("fec0::/10", LOCAL),
    ("ff00::/8", NOBODY),
    ("1.0.0.0/8", ANYBODY),
    ("2600::/12", ANYBODY),
    ("64:ff9b::8.0.0.0/104", ANYBODY),
    ("4000::/3", LOCAL),
    ("::ffff:0:0:0/96", LOCAL),
]


@pytest.mark.parametrize(("text", "tellers"), SPECIAL)
def test_on_whose_word_an_address_of_a_range_is_dialled(text: str, tellers: str) -> None:
    by = {
        "open": OPEN,
        "private": PRIVATE,
        "loopback": LOOPBACK,
        "customer": CUSTOMER,
        "translated": TRANSLATED,
        "unknown": None,
    }
    network = ip_network(text)
    for ip in (network[0], network[network.num_addresses // 2], network[-1]):
        inner = unwrapped(ip)
        assert {name for name, teller in by.items() if may_tell(teller, inner)} == set(tellers.split()), ip
        assert is_public(inner) == (tellers == ANYBODY)
