from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.config import AirGapConfig
from rapha.spec.lan import SHORTEST, ranges
from rapha.spec.receipt import AirGap
from rapha.spec.refusals import Refused

SECTION: dict[str, Any] = {
    "interface": "eth0",
    "waiver": None,
    "mode": "nftables",
    "lan": [],
    "probes": {},
    "wan_bytes_sent": 0,
    "lifted": True,
    "reported_by": "host",
}
BAD = {
    "the world": "0.0.0.0/0",
    "half of the world": "128.0.0.0/1",
    "the world by IPv6": "::/0",
    "all of global unicast": "2000::/3",
    "no address": "999.999.999.999/8",
    "no prefix": "10.0.0.0/99",
    "bits of a host": "10.0.0.1/8",
    "another form": "2001:0db8::/32",
    "upper case": "FD00::/16",
    "multicast": "224.0.0.0/8",
    "multicast by IPv6": "ff00::/16",
    "loopback": "127.0.0.0/8",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_no_receipt_and_no_node_names_what_is_no_lan(text: str) -> None:
    with pytest.raises(ValueError, match="LAN range"):
        ranges([text])
    with pytest.raises(Refused, match=r"schema\."):
        AirGap.parse({**SECTION, "lan": [text]})
    with pytest.raises(Refused, match=r"schema\."):
        AirGapConfig.parse({"lan": [text]})


def test_a_hospitals_ranges_are_read() -> None:
    lan = ["10.0.0.0/8", "192.168.7.0/24", "fd00::/16", "10.9.0.4/32"]
    assert [str(one) for one in ranges(lan)] == lan
    assert AirGap.parse({**SECTION, "lan": lan}).lan == tuple(lan)
    assert AirGapConfig.parse({"lan": lan}).lan == tuple(lan)


@given(st.one_of(st.text(max_size=50), st.ip_addresses().map(str), st.from_regex(r"[0-9a-f.:]+/[0-9]+")))
def test_any_text_is_a_narrow_range_or_refused(text: str) -> None:
    try:
        (found,) = ranges([text])
    except ValueError:
        return
    assert str(found) == text or ipaddress.ip_network(text) == found
    assert found.prefixlen >= SHORTEST[found.version]
