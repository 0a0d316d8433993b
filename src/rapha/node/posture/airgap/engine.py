"""Sever, look, and restore: what the helper does to the kernel. Every function may be called again.

After a kill at any point the record says what was meant, and doing it once more does no harm.
"""

from __future__ import annotations

import errno
import secrets
import time
from pathlib import Path
from typing import Final

from rapha.node.posture.airgap import links, nftables
from rapha.node.posture.airgap.links import Link
from rapha.node.posture.airgap.model import Device, Lock, Reading, Record, Sever, networks
from rapha.node.posture.airgap.nftables import Chains, Tally
from rapha.spec.refusals import Refused

SETTLE_S: Final = 0.2
"""Packets that were in a queue when the gap closed, and a dying job's last ones, are through by then."""
_QUIET_S: Final = 3.0
_NOTHING: Final = Tally(0, 0, 0)


def boot() -> str:
    """This boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def netns() -> str:
    """This network namespace: interface numbers mean nothing in another."""
    return str(Path("/proc/self/ns/net").readlink())


def prepare(request: Sever, lock: Lock) -> Record:
    """Judge the request against the kernel and collect all that restoring will need. Changes nothing.

    Raises:
        Refused: `posture.seal_failed` if the interface can't be severed as asked, or is not the only way out.
    """
    known = links.links()
    named = _named(known, request.interface)
    ports = links.ports(known, named.index)
    stacked = [one for base in (named, *ports) for one in links.stacked(known, base.index)]
    if request.mode == "nftables":
        _filterable([named, *ports])
    severed = [named, *ports, *(stacked if request.mode == "link" else [])]
    _only_way_out(known, {one.index for one in (named, *ports, *stacked)})
    lan = tuple(str(network) for network in networks(request.lan))
    numbers = {one.index for one in severed} if request.mode == "link" else set()
    return Record(
        version=1,
        id=secrets.token_hex(32),
        phase="severing",
        interface=request.interface,
        mode=request.mode,
        lan=lan,
        boot=boot(),
        netns=netns(),
        lock=lock,
        devices=tuple(
            Device(index=one.index, name=one.name, up=one.up, stacked=one in stacked) for one in severed
        ),
        addresses=tuple(body.hex() for body in links.addresses(numbers)),
        routes=tuple(body.hex() for body in links.routes(numbers)),
    )


def seal(record: Record) -> None:
    """Close the gap, or close it again.

    Raises:
        OSError: with the kernel's errno.
    """
    if record.mode == "nftables":
        nftables.install(_chains(record))
        return
    for device in record.devices:
        try:
            links.set_up(device.index, up=False)
        except OSError as error:
            if error.errno != errno.ENODEV:  # what is gone sends nothing
                raise


def breach(record: Record) -> str:
    """Why the gap does not hold now, from the kernel's own tables; empty if it holds.

    Raises:
        OSError: if the kernel doesn't answer.
    """
    known = links.links()
    for device in record.devices:
        found = known.get(device.index)
        if found is None:
            return f"{device.name} is gone"
        if record.mode == "link" and found.up:
            return f"{device.name} is up"
        if record.mode == "nftables" and found.name != device.name:
            return f"{device.name} was renamed to {found.name}"
        if record.mode == "nftables" and found.xdp:
            return f"{device.name} has an XDP program"
    numbers = {device.index for device in record.devices}
    return _joined(known, record, numbers) or (_filter_breach(record) if record.mode == "nftables" else "")


def read(record: Record) -> Reading:
    """Counters now. What is gone counts nothing.

    Raises:
        OSError: if the kernel doesn't answer.
    """
    known = links.links()
    counted = [known[d.index] for d in record.devices if not d.stacked and d.index in known]
    tally = nftables.tally(nftables.present()) if record.mode == "nftables" else _NOTHING
    return Reading(
        tx_bytes=sum(one.tx_bytes for one in counted),
        tx_packets=sum(one.tx_packets for one in counted),
        lan_bytes=tally.lan_bytes,
        lan_packets=tally.lan_packets,
        dropped_packets=tally.dropped_packets,
    )


def settled(record: Record) -> Reading:
    """Counters once what was under way is through.

    Raises:
        Refused: `posture.seal_failed` if an interface that is down goes on counting.
    """
    time.sleep(SETTLE_S)
    reading = read(record)
    deadline = time.monotonic() + _QUIET_S
    while record.mode == "link":  # through the LAN rules there may always be traffic
        time.sleep(SETTLE_S / 2)
        again = read(record)
        if again == reading:
            break
        if time.monotonic() > deadline:
            raise Refused("posture.seal_failed", f"{record.interface} is down and still counts what it sends")
        reading = again
    return reading


def sent(before: Reading, after: Reading, mode: str) -> str:
    """Why the counters say that something left, or empty.

    In mode `nftables` what goes to the LAN passes the same interface, whose driver counts segments where the
    rules count packets; so the interface must only stand still where no rule let anything pass.
    """
    moved = (after.tx_bytes, after.tx_packets) != (before.tx_bytes, before.tx_packets)
    passed = mode == "nftables" and after.lan_packets > before.lan_packets
    if moved and not passed:
        return f"{after.tx_packets - before.tx_packets} packets were sent while the interface was severed"
    return ""


def restore(record: Record, onlink: bool) -> str:
    """Put the network back; what is still missing, or empty once all is there, read from the kernel.

    `onlink` as for `links.put_back`. After a reboot the system's own configuration has made the network, and
    our numbers mean nothing: only our tables are looked for.

    Raises:
        OSError: with the kernel's errno.
    """
    if record.mode == "nftables":
        nftables.remove()
        return "the removal of our tables" if nftables.handles() else ""
    if record.boot != boot():
        return ""
    _set_up(record)
    present = set(links.links())
    saved_addresses = [bytes.fromhex(text) for text in record.addresses]
    saved_routes = [bytes.fromhex(text) for text in record.routes]
    addresses = [body for body in saved_addresses if links.address_index(body) in present]
    routes = [body for body in saved_routes if links.route_indexes(body) <= present]
    links.put_back(addresses, routes, onlink)
    return _missing(record, addresses, routes)


def force_up(interface: str) -> None:
    """Set an interface up by name, on the operator's word.

    Raises:
        Refused: `posture.seal_failed` if there is none of that name.
        OSError: with the kernel's errno.
    """
    links.set_up(_by_name(links.links(), interface).index, up=True)


def _set_up(record: Record) -> None:
    # Ports first, then what they carry, then what is stacked on that.
    named, *others = record.devices
    ports = [d for d in others if not d.stacked]
    for device in (*reversed(ports), named, *(d for d in others if d.stacked)):
        if not device.up:
            continue
        try:
            links.set_up(device.index, up=True)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def _missing(record: Record, addresses: list[bytes], routes: list[bytes]) -> str:
    numbers = {device.index for device in record.devices}
    known = links.links()
    down = [d.name for d in record.devices if d.up and d.index in known and not known[d.index].up]
    have = {links.address_key(body) for body in links.addresses(numbers)}
    lost = sum(links.address_key(body) not in have for body in addresses)
    ways = {links.route_key(body) for body in links.routes(numbers)}
    astray = sum(links.route_key(body) not in ways for body in routes)
    told = [f"{name} is down" for name in down]
    told += [f"{lost} addresses"] * bool(lost) + [f"{astray} routes"] * bool(astray)
    return ", ".join(told)


def _chains(record: Record) -> Chains:
    return nftables.wanted([(d.index, d.name) for d in record.devices], networks(record.lan))


def _filter_breach(record: Record) -> str:
    try:
        tables = nftables.handles()
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return "our nftables tables were made dormant"
        raise
    if not tables or (record.tables and tables != record.tables):
        return "our nftables tables were deleted"
    if nftables.meaning(nftables.present()) != nftables.meaning(_chains(record)):
        return "our nftables rules are not what they were"
    return ""


def _joined(known: dict[int, Link], record: Record, numbers: set[int]) -> str:
    named = record.devices[0].index
    ports = [one for one in links.ports(known, named) if one.index not in numbers]
    if ports:
        return f"{ports[0].name} became a port of {record.interface}"
    covered = numbers | {one.index for i in numbers for one in links.stacked(known, i)}
    beyond = _names(known, links.ways_out(covered))
    return f"a route leads out through {beyond}" if beyond else ""


def _named(known: dict[int, Link], name: str) -> Link:
    found = _by_name(known, name)
    if found.flags & links.LOOPBACK:
        raise Refused("posture.seal_failed", f"{name} is the loopback interface")
    if found.master:
        master = known[found.master].name if found.master in known else "another interface"
        raise Refused("posture.seal_failed", f"{name} is a port of {master}: name that one")
    return found


def _by_name(known: dict[int, Link], name: str) -> Link:
    for one in known.values():
        if one.name == name:
            return one
    raise Refused("posture.seal_failed", f"there is no interface {name}")


def _filterable(severed: list[Link]) -> None:
    for one in severed:
        if one.kind != links.ETHERNET:
            raise Refused("posture.seal_failed", f"{one.name} is not Ethernet: use mode link")
        if one.xdp:
            raise Refused(
                "posture.seal_failed", f"{one.name} has an XDP program, which no rule sees: use mode link"
            )


def _only_way_out(known: dict[int, Link], covered: set[int]) -> None:
    beyond = _names(known, links.ways_out(covered))
    if beyond:
        raise Refused("posture.seal_failed", f"a route also leads out through {beyond}")


def _names(known: dict[int, Link], indexes: frozenset[int]) -> str:
    return ", ".join(sorted(known[i].name if i in known else "an interface that hides" for i in indexes))
