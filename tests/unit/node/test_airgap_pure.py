"""The air gap's parts that touch no network: what is parsed, written down and locked."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.cli.airgap import app
from rapha.node.posture.airgap import expressions, links, nftables, wire
from rapha.node.posture.airgap.client import Gap, Hold, probe, resolve, sever
from rapha.node.posture.airgap.engine import sent
from rapha.node.posture.airgap.helper import Options, listening
from rapha.node.posture.airgap.hold import Watch
from rapha.node.posture.airgap.journal import LAST, RECORD, Journal
from rapha.node.posture.airgap.keeper import NEXT
from rapha.node.posture.airgap.model import Device, Lock, Outcome, Reading, Record, State, networks
from rapha.node.posture.airgap.netlink import Message, attribute, attributes, nested, pairs
from rapha.spec.refusals import Refused


def record(**changes: object) -> Record:
    made = Record(
        version=1,
        id="0" * 64,
        phase="severed",
        interface="wan0",
        mode="link",
        lan=(),
        boot="b",
        netns="net:[1]",
        lock=Lock(path="/x", identity="1:2"),
        devices=(Device(index=3, name="wan0", up=True, stacked=False),),
        addresses=("00ff",),
        routes=(),
    )
    return made.now(**changes)


# ---- ranges


NO_RANGES = (  # noqa: SIM905  as a list it is a page
    "|lan|10.0.0.0|10.0.0.1/8|0.0.0.0/0|10.0.0.0/7|::/0|2000::/3|fd00::1/16|127.0.0.0/8|224.0.0.0/8|ff02::/16|"
    "10.0.0.0/255.0.0.0| 10.0.0.0/8|10.0.0.0/8 |010.0.0.0/8|FD00::/16|10.0.0.0/33|1/8|::ffff:0:0/96x"
).split("|")


@pytest.mark.parametrize("text", NO_RANGES)
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        networks([text])
    assert refused.value.code == "posture.seal_failed"


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "192.168.7.0/24", "10.1.2.3/32", "fd00::/16", "fe80::/64", "2001:db8::/32"]
)
def test_ranges_that_are_taken(text: str) -> None:
    assert [str(n) for n in networks([text])] == [text]


# ---- netlink


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_one_error(data: bytes) -> None:
    try:
        found = list(pairs(data))
    except ValueError:
        return
    assert sum(len(value) for _, value in found) <= len(data)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back(told: list[tuple[int, bytes]]) -> None:
    assert list(pairs(b"".join(attribute(kind, value) for kind, value in told))) == told
    assert attributes(nested(7, *(attribute(k, v) for k, v in told)))[7] == b"".join(
        attribute(k, v) for k, v in told
    )


def test_an_interface_in_another_namespace_is_no_parent() -> None:
    head = struct.pack("=HHiII", 0, 1, 5, 1, 0)
    parent = attribute(5, struct.pack("=I", 9))
    assert links.link(Message(16, head + parent)).parent == 9
    assert links.link(Message(16, head + parent + attribute(37, bytes(4)))).parent == 0
    assert links.link(Message(16, head + parent + nested(18, attribute(1, b"veth\0")))).parent == 0


def test_loops_of_interfaces_end() -> None:
    def one(index: int, master: int, parent: int) -> links.Link:
        return links.Link(index, f"i{index}", 1, 1, master, parent, False, 0, 0)

    ring = {i: one(i, i % 3 + 1, i % 3 + 1) for i in (1, 2, 3)}
    assert {link.index for link in links.ports(ring, 1)} == {2, 3}
    assert {link.index for link in links.stacked(ring, 1)} == {2, 3}


# ---- rules


def test_rules_mean_the_same_however_they_are_encoded() -> None:
    for text in ("10.0.0.0/8", "fd00::/16"):
        for rule in (
            *expressions.frames(ipaddress.ip_network(text), True),
            *expressions.packets(ipaddress.ip_network(text), 3),
        ):
            said = expressions.said(rule)
            assert said[-2] == ("counter", ())
            assert expressions.accepts(rule)
    assert not expressions.accepts(expressions.counted(accept=False))


def test_every_chain_ends_in_a_drop() -> None:
    chains = nftables.wanted([(3, "wan0"), (4, "wan1")], networks(["10.0.0.0/8"]))
    assert {base.device for base in chains} == {"wan0", "wan1", ""}
    for base, rules in chains.items():
        assert not expressions.accepts(rules[-1])
        assert base.policy == (0 if base.device else 1)  # the inet chains see every interface


# ---- journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "j")
    yield one
    one.close()


def test_a_record_comes_back(journal: Journal, tmp_path: Path) -> None:
    assert journal.record() is None
    journal.write(record())
    assert journal.record() == record()
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "j" / RECORD).stat().st_mode & 0o777 == 0o600
    outcome = Outcome(version=1, id="0" * 64, before=None, after=None, broken="x")
    journal.end(outcome)
    assert journal.record() is None
    assert journal.last() == outcome


def test_every_single_changed_byte_is_refused(journal: Journal, tmp_path: Path) -> None:
    journal.write(record())
    path = tmp_path / "j" / RECORD
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(Refused, match="damaged"):
            journal.record()
        path.write_bytes(whole[:position])
        with pytest.raises(Refused, match="damaged"):
            journal.record()


def test_a_link_in_the_journals_place_is_refused(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "j" / RECORD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        journal.record()


def test_set_aside_keeps_the_file(journal: Journal, tmp_path: Path) -> None:
    journal.set_aside(LAST)
    (tmp_path / "j" / LAST).write_bytes(b"?")
    journal.set_aside(LAST)
    assert (tmp_path / "j" / f"{LAST}.set-aside").read_bytes() == b"?"


def test_one_helper_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapha.node.posture.airgap.journal._WAIT_S", 0)
    first = Journal(tmp_path)
    with pytest.raises(Refused) as refused:
        Journal(tmp_path)
    assert refused.value.code == "node.busy"
    first.close()
    Journal(tmp_path).close()


# ---- the lock


def test_the_lock_is_free_when_the_last_share_is_closed(tmp_path: Path) -> None:
    hold = Hold.create(tmp_path)
    share = os.dup(hold.fd)
    lock, watch = Watch.adopt(str(hold.path), hold.fd)
    hold.release()
    hold.release()
    assert not watch.free()
    os.close(share)
    assert watch.free()
    watch.close()
    again = Watch.reopen(lock)
    assert again.free()
    again.close()


def test_another_file_of_that_name_is_not_the_lock(tmp_path: Path) -> None:
    with Hold.create(tmp_path) as hold:
        lock, watch = Watch.adopt(str(hold.path), hold.fd)
        watch.close()
        kept = hold.path.rename(tmp_path / "old")
        with pytest.raises(Refused):
            Watch.reopen(lock)
        hold.path.write_bytes(b"")
        with pytest.raises(Refused, match="not the file"):
            Watch.reopen(lock)
        hold.path.unlink()
        hold.path.symlink_to(kept)
        with pytest.raises(Refused):
            Watch.reopen(lock)


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing"])
def test_what_is_no_regular_file_is_no_lock(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with Hold.create(tmp_path) as hold, pytest.raises(Refused):
        Watch.adopt(str(path), hold.fd)


def test_a_new_lock_waits_for_the_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapha.node.posture.airgap.hold._WAIT_S", 0)
    hold = Hold.create(tmp_path)
    _, watch = Watch.adopt(str(hold.path), hold.fd)
    hold.release()
    assert watch.free()
    with pytest.raises(Refused, match="still restoring"):
        Hold.create(tmp_path)
    watch.close()


# ---- the protocol

HOSTILE = [
    b"",
    b"\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"op":"state"}',
    b'{"op":"state"}\n{"op":"state"}\n',
    b'{ "op":"state"}\n',
    b'{"op":"state","op":"state"}\n',
    b'{"op":"state","x":1}\n',
    b'{"op":["state"]}\n',
    b'{"op":"reboot"}\n',
    b'{"op":"lift","id":"0"}\n',
    b'{"hold":"/x","interface":"../../eth0","lan":[],"mode":"link","op":"sever"}\n',
    b'{"hold":"/x","interface":"a b","lan":[],"mode":"link","op":"sever"}\n',
    b'{"hold":"/x","interface":"eth0","lan":[],"mode":"none","op":"sever"}\n',
    b'{"hold":"/x","interface":"averyveryverylong","lan":[],"mode":"link","op":"sever"}\n',
    b'{"force":1,"interface":null,"op":"restore"}\n',
    b"\xff\xfe\n",
    b"[" * 5000 + b"\n",
    b'"' + b"x" * (65 << 10) + b'"\n',
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_refused(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        theirs.send(line)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Refused) as refused:
            wire.request(wire.receive(ours, 5)[0])
    assert refused.value.code.startswith("schema.")


@given(st.binary(max_size=300))
def test_any_line_is_a_request_or_a_schema_refusal(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(line + b"\n")
        theirs.shutdown(socket.SHUT_WR)
        try:
            wire.request(wire.receive(ours, 5)[0])
        except Refused as refused:
            assert refused.code.startswith("schema.")


def test_a_silent_peer_costs_one_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        theirs.sendall(b"{")
        wire.receive(ours, 0.05)


def test_descriptors_of_a_bad_request_are_closed() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        socket.send_fds(theirs, [b"not json\n"], [writing])
        os.close(writing)
        with pytest.raises(Refused):
            wire.receive(ours, 5)
    assert os.read(reading, 1) == b""  # nobody holds the other end any more
    os.close(reading)


def test_too_many_descriptors_are_refused_and_closed() -> None:
    ours, theirs = socket.socketpair()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ours, theirs:
        socket.send_fds(theirs, [b"{}\n"], [0] * 40)
        with pytest.raises(Refused):
            wire.receive(ours, 5)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "answer",
    [None, {}, {"ok": 1}, {"ok": True}, {"ok": False, "code": "x", "detail": ""}, {"ok": True, "state": {}}],
)
def test_answers_that_are_none(answer: object) -> None:
    with pytest.raises(Refused):
        wire.state(answer)


def test_an_answer_comes_back() -> None:
    told = State(phase="open", id=None, interface=None, mode=None, held=False, broken="", note="", last=None)
    assert wire.state(wire.answer(told)) == told
    with pytest.raises(Refused, match="because"):
        wire.state(wire.refusal(Refused("posture.seal_failed", "because")))


# ---- the command


def leaves(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        app(args=list(arguments), prog_name="rapha node airgap")
    return int(leaving.value.code or 0)


def test_the_command_says_what_it_could_not_find_out(tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    assert leaves("state", "--socket", none) == 3
    assert leaves("restore", "--socket", none, "--interface", "wan0") == 2
    assert leaves("serve", "--socket", none) == 2
    with pytest.raises(Refused, match="does not answer"):
        app(args=["restore", "--socket", none], prog_name="rapha node airgap")


# ---- the rest


def test_the_phases_lead_to_the_end() -> None:
    assert NEXT.keys() == {None, "severing", "severed", "restoring"}
    assert all("severed" not in after for phase, after in NEXT.items() if phase != "severing")


@pytest.mark.parametrize(
    ("mode", "moved", "lan", "left"),
    [("link", 0, 0, False), ("link", 1, 0, True), ("nftables", 5, 5, False), ("nftables", 5, 0, True)],
)
def test_what_the_counters_say(mode: str, moved: int, lan: int, left: bool) -> None:
    before = Reading(tx_bytes=9, tx_packets=9, lan_bytes=0, lan_packets=0, dropped_packets=0)
    after = before.model_copy(update={"tx_packets": 9 + moved, "lan_packets": lan})
    assert bool(sent(before, after, mode)) is left


def test_no_helper_is_a_refusal(tmp_path: Path) -> None:
    with Hold.create(tmp_path) as hold, pytest.raises(Refused, match="does not answer") as refused:
        sever(tmp_path / "none", Gap("wan0", "link"), hold.fd)
    assert refused.value.code == "posture.seal_failed"


def test_only_a_dead_helpers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    options = Options(path, tmp_path, frozenset({os.geteuid()}))
    listening(options).close()
    again = listening(options)
    assert path.stat().st_mode & 0o777 == 0o660
    again.close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(Refused, match="something else"):
        listening(options)
    with pytest.raises(Refused, match="longer"):
        listening(Options(tmp_path / ("x" * 120), tmp_path, frozenset()))


def test_probes_tell_a_listener_a_refusal_and_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe("127.0.0.1", port) == "reachable"
    assert probe("127.0.0.1", port) == "reachable"  # a host that refuses was reached
    assert probe("no-such-host.invalid", port) == "unknown"
    assert resolve("127.0.0.1", port)[0].address == ("127.0.0.1", port)
