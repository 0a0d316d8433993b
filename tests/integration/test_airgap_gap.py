"""The air gap in network namespaces of its own: a hospital, a WAN peer and a LAN peer.

Everything privileged runs inside a user namespace that the test makes, so that no interface of this machine
can be touched, and no root is needed where unprivileged user namespaces are allowed.
"""

import contextlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rapha.node.posture.airgap.client import Counters, Gap, Hold, restore, sever, state
from rapha.node.posture.airgap.journal import Journal
from rapha.node.posture.airgap.model import Mode
from rapha.spec.refusals import Refused

WAN, WAN6, LAN, LAN6 = "198.51.100.1", "2001:db8::1", "10.9.0.1", "fd09::1"
NEAR, NEAR6 = "10.8.0.1", "fd08::1"
"""LAN addresses that are reached through the WAN interface."""
UNSHARE = ("unshare", "--user", "--map-root-user", "--net")
GENEROUS_S = 20.0
MODES: list[Mode] = ["link", "nftables"]


def allowed() -> bool:
    try:
        return (
            subprocess.run(
                [*UNSHARE, "ip", "link", "add", "a0", "type", "veth"], capture_output=True
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not allowed(), reason="no user and network namespaces, veth and `ip` here")

TALK = r"""
import json, os, socket, struct, sys, time
wan, wan6, near, lan = sys.argv[1:5]
index = socket.if_nametoindex("wan0")
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
bypass = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
bypass.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
packet.bind(("wan0", 0))
source, everybody = packet.getsockname()[4], b"\xff" * 6
ours = socket.inet_aton("198.51.100.2")
arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, source, ours, bytes(6), socket.inet_aton(wan))
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, ours, socket.inet_aton(near)) + bytes(8)
near6 = socket.inet_pton(socket.AF_INET6, "fd08::1")
frames = [
    b"\x08\x06" + arp, b"\x88\xb5" + b"own protocol" * 4, b"\x88\xcc" + bytes(46),
    b"\x81\x00\x00\x05\x08\x00" + ip, b"\x88\xa8\x00\x05\x08\x00" + ip,
    b"\x86\xdd" + bytes(60), b"\x08\x00" + bytes(60),
]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
udp, udp6 = (socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6))
for s in (packet, bypass, raw, raw6, udp, udp6):
    s.setblocking(False)
def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError:
        pass
def knock(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setblocking(False)
        attempt(s.connect, address)
flow = socket.create_connection((wan, 7000), timeout=5)
flow.setblocking(False)
print("talking", flush=True)
while True:
    for frame in frames:
        for s in (packet, bypass):
            for target in (everybody, b"\x01\x80\xc2\x00\x00\x0e"):
                attempt(s.sendto, target + source + frame, ("wan0", 0))
    attempt(raw.sendto, b"\x08\x00" + bytes(14), (wan, 0))
    attempt(raw6.sendto, b"\x80\x00" + bytes(14), (wan6, 0))
    # Looks like neighbour discovery for the LAN, and goes out into the world.
    attempt(raw6.sendto, b"\x88\x00\x00\x00\x60\x00\x00\x00" + near6 + bytes(8), (wan6, 0))
    attempt(udp.sendto, b"x", (wan, 53)); attempt(udp6.sendto, b"x", (wan6, 53))
    attempt(udp.sendto, b"x", ("224.0.0.251", 5353)); attempt(udp6.sendto, b"x", ("ff02::fb", 5353, 0, index))
    attempt(udp.sendto, b"x", ("255.255.255.255", 67))
    knock(socket.AF_INET, (wan, 7000)); knock(socket.AF_INET6, (wan6, 7000))
    attempt(flow.send, bytes(1000))
    time.sleep(0.002)
"""
KNOCK = r"""
import socket, sys, time
def connect(address, wait):
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        try:
            return not socket.create_connection((address, 7000), timeout=min(0.5, wait)).close()
        except OSError:
            time.sleep(0.02)
sys.exit(not all(connect(address, float(sys.argv[1])) for address in sys.argv[2:]))
"""
LISTEN = r"""
import socket, threading
s = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
def sink(c):
    with c:
        try:
            while c.recv(65536): pass
        except OSError:
            pass
while True:
    threading.Thread(target=sink, args=(s.accept()[0],), daemon=True).start()
"""
CAPTURE = r"""
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("peer0", 0))
near = (socket.inet_aton("10.8.0.1"), socket.inet_pton(socket.AF_INET6, "fd08::1"))
print("listening", flush=True)
strange = open(sys.argv[1], "w", buffering=1)
while True:
    frame, sender = s.recvfrom(65536)
    if sender[2] == socket.PACKET_OUTGOING: continue
    kind, body = frame[12:14], frame[14:]
    good = {b"\x08\x00": body[16:20] == near[0], b"\x08\x06": body[24:28] == near[0],
            b"\x86\xdd": body[24:40] == near[1] or body[48:64] == near[1]}.get(kind, False)
    if not good:
        strange.write(frame[:64].hex() + "\n")
"""


@dataclass
class World:
    """Three namespaces, by the processes that hold them open."""

    folder: Path
    hospital: int
    wan: int
    lan: int
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    def enter(self, pid: int) -> list[str]:
        return ["nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials"]

    def run(self, *command: str, pid: int | None = None) -> str:
        done = subprocess.run(
            [*self.enter(pid or self.hospital), *command], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def ip(self, *lines: str, pid: int | None = None) -> None:
        subprocess.run(
            [*self.enter(pid or self.hospital), "ip", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            check=True,
        )

    def spawn(
        self, *command: str, pid: int | None = None, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*self.enter(pid or self.hospital), *command], stdout=subprocess.PIPE, text=True, pass_fds=fds
        )
        self.children.append(child)
        return child

    def python(
        self, code: str, *arguments: str, pid: int | None = None, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[str]:
        return self.spawn(sys.executable, "-c", code, *arguments, pid=pid, fds=fds)

    def helper(self) -> subprocess.Popen[str]:
        child = self.spawn(
            sys.executable,
            "-m",
            "rapha.node.posture.airgap",
            "--socket",
            str(self.socket),
            "--journal",
            str(self.folder / "j"),
        )
        until(self.alive)
        return child

    def alive(self) -> bool:
        try:
            return bool(state(self.socket))
        except Refused:
            return False

    def at_wan(self) -> int:
        """Packets that reached the WAN peer."""
        lines = Path(f"/proc/{self.wan}/net/dev").read_text().splitlines()
        return int(next(line for line in lines if "peer0" in line).split(":")[1].split()[1])

    def reaches(self, *addresses: str, wait_s: float = 0.5) -> bool:
        """Can the hospital connect to all of them?"""
        command = [
            *self.enter(self.hospital),
            sys.executable,
            "-I",
            "-S",
            "-c",
            KNOCK,
            str(wait_s),
            *addresses,
        ]
        return subprocess.run(command, timeout=60).returncode == 0

    def network(self) -> str:
        shown = [self.run("ip", "-o", "addr"), self.run("ip", "route"), self.run("ip", "-6", "route")]
        lines = [
            line.split(" valid_lft")[0].replace(" tentative", "") for line in "\n".join(shown).splitlines()
        ]
        return "\n".join(sorted(line.strip().removesuffix("\\").strip() for line in lines))

    def end(self, child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
        child.send_signal(number)
        child.wait(10)
        if child.stdout:
            child.stdout.close()
        self.children.remove(child)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@contextmanager
def made() -> Iterator[World]:
    hospital = subprocess.Popen([*UNSHARE, "sleep", "infinity"])
    until(lambda: asleep(hospital.pid))
    assert Path(f"/proc/{hospital.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    world = World(Path(), hospital.pid, 0, 0)
    peers = [
        subprocess.Popen([*world.enter(hospital.pid), "unshare", "--net", "sleep", "infinity"]) for _ in "12"
    ]
    world.wan, world.lan = (peer.pid for peer in peers)
    until(lambda: asleep(world.wan) and asleep(world.lan))
    world.ip("link set lo up")
    for pid in (world.wan, world.lan):
        world.ip("link set lo up", pid=pid)
        world.python(LISTEN, pid=pid)
    try:
        yield world
    finally:
        for child in list(world.children):
            world.end(child)
        for holder in (hospital, *peers):
            holder.kill()
            holder.wait()


def asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"


def connect(world: World) -> None:
    for name, pid, ours, theirs in (
        (
            "wan0",
            world.wan,
            ("198.51.100.2/24", "2001:db8::2/64", "10.8.0.2/24", "fd08::2/64"),
            (WAN, WAN6, NEAR, NEAR6),
        ),
        ("lan0", world.lan, ("10.9.0.2/24", "fd09::2/64"), (LAN, LAN6)),
    ):
        world.ip(f"link add {name} type veth peer name peer0 netns {pid}")
        world.ip(
            *(f"addr add {a} dev {name}" + (" nodad" if ":" in a else "") for a in ours),
            f"link set {name} up",
        )
        world.ip(
            *(
                f"addr add {a}/{64 if ':' in a else 24} dev peer0" + (" nodad" if ":" in a else "")
                for a in theirs
            ),
            "link set peer0 up",
            pid=pid,
        )
    world.ip(f"route add default via {WAN}", f"route add default via {WAN6}")
    world.ip(
        f"route add 203.0.113.0/24 via {WAN} metric 7 table 42",
        "route add 10.77.0.0/16 dev wan0 src 198.51.100.2",
    )
    world.ip(
        "route add 2001:db8:7::/48 via 2001:db8::9 metric 3",
        f"route add 192.0.2.0/24 nexthop via {WAN} nexthop via 198.51.100.9",
    )
    assert world.reaches(WAN, WAN6, LAN, LAN6, NEAR, NEAR6, wait_s=GENEROUS_S)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[World]:
    with made() as one:
        yield one


@pytest.fixture
def world(namespaces: World, tmp_path: Path) -> Iterator[World]:
    with connected(namespaces, tmp_path) as one:
        yield one


@contextmanager
def connected(world: World, folder: Path) -> Iterator[World]:
    """A fresh network in the same namespaces."""
    lasting = list(world.children)
    world.folder = folder
    connect(world)
    try:
        yield world
    finally:
        for child in [c for c in world.children if c not in lasting]:
            world.end(child)
        world.run(
            "sh",
            "-c",
            "nft flush ruleset; for i in wan0 wan9 lan0 br0; do ip link del $i 2>/dev/null; done; true",
        )


def gap(mode: Mode) -> Gap:
    return Gap("wan0", mode, () if mode == "link" else ("10.8.0.0/24", "fd08::/64"))


def talk(world: World, hold: Hold) -> subprocess.Popen[str]:
    """A job that sends all it can, and holds the lock as the sandbox's init does."""
    job = world.python(TALK, WAN, WAN6, NEAR, LAN, fds=(hold.fd,))
    assert job.stdout is not None
    assert job.stdout.readline() == "talking\n"
    return job


@pytest.mark.parametrize("mode", MODES)
def test_nothing_reaches_the_wan_and_all_is_restored(world: World, mode: Mode) -> None:
    network, strange = world.network(), world.folder / "strange"
    world.helper()
    hold = Hold.create(world.folder / "hold")
    job = talk(world, hold)
    before = world.at_wan()
    until(lambda: world.at_wan() > before + 100)
    with sever(world.socket, gap(mode), hold.fd) as severed:
        capture = world.python(CAPTURE, str(strange), pid=world.wan)
        assert capture.stdout is not None
        capture.stdout.readline()
        count = world.at_wan()
        if mode == "nftables":
            assert world.reaches(NEAR)
            assert world.reaches(NEAR6)
        else:
            assert not world.reaches(NEAR)
        assert world.reaches(LAN)
        assert world.reaches(LAN6)
        assert not world.reaches(WAN)
        assert not world.reaches(WAN6)
        severed.check()
        if mode == "link":
            assert world.at_wan() == count
        world.end(job)
        world.end(capture)
        hold.release()
        sent = severed.lift()
    assert strange.read_text() == ""
    check(sent, mode)
    assert world.network() == network
    assert world.reaches(WAN, WAN6, LAN, LAN6, NEAR, NEAR6, wait_s=GENEROUS_S)
    assert state(world.socket).phase == "open"
    assert not (world.folder / "j" / "airgap.json").exists()


def check(sent: Counters, mode: Mode) -> None:
    if mode == "link":
        assert (sent.tx_bytes_before, sent.tx_packets_before) == (sent.tx_bytes_after, sent.tx_packets_after)
        assert sent.lan_bytes == sent.dropped_packets == 0
    else:
        assert sent.dropped_packets > 100
        assert 0 < sent.lan_packets < 100
        assert sent.tx_packets_after - sent.tx_packets_before == sent.lan_packets


def job_with_lock(world: World) -> tuple[Hold, subprocess.Popen[str]]:
    hold = Hold.create(world.folder / "hold")
    return hold, talk(world, hold)


MOMENTS = ("while severing", "while the job lives", "while restoring")
VICTIMS = ("helper", "client and helper", "client")


def killed(world: World, mode: Mode, moment: str, who: str, chance: random.Random) -> list[str]:
    """One round with one kill; the row of the table.

    The client's death is its share of the lock let go without a word: more it does not hold.
    """
    helper = world.helper()
    hold, job = job_with_lock(world)
    closing = threading.Thread(target=close_gap, args=(world, mode, hold))
    closing.start()
    if moment == "while severing":
        helper = strike(world, helper, who, chance)
    closing.join()
    hold.release()
    sealed = state(world.socket).phase == "severed" if world.alive() else False
    spy, frames = watched(world)
    if moment == "while the job lives":
        helper = strike(world, helper, who, chance)
    time.sleep(0.1)
    world.end(spy)
    packets = str(len(frames.read_text().splitlines())) if sealed else "not severed"
    world.end(job)
    if moment == "while restoring":
        helper = strike(world, helper, who, chance)
    by = "the next start" if "helper" in who else "the same helper"
    if helper.poll() is not None:
        helper = world.helper()
    until(lambda: state(world.socket).phase == "open")
    world.end(helper)
    return [mode, moment, who, packets, by]


def close_gap(world: World, mode: Mode, hold: Hold) -> None:
    with contextlib.suppress(Refused):
        sever(world.socket, gap(mode), hold.fd)


def strike(
    world: World, helper: subprocess.Popen[str], who: str, chance: random.Random
) -> subprocess.Popen[str]:
    """Kill at a random moment; half of the time the helper is started again at once, else later."""
    time.sleep(chance.random() * 0.5)
    if "helper" not in who:
        return helper
    helper.kill()
    helper.wait(10)
    return world.helper() if chance.random() < 0.5 else helper


def watched(world: World) -> tuple[subprocess.Popen[str], Path]:
    frames = world.folder / "strange"
    spy = world.python(CAPTURE, str(frames), pid=world.wan)
    assert spy.stdout is not None
    spy.stdout.readline()
    return spy, frames


def rounds(world: World, count: int, seed: int) -> None:
    chance = random.Random(seed)
    network = world.network()
    for number in range(count):
        mode, moment = MODES[chance.randrange(2)], MOMENTS[number % 3]
        row = killed(world, mode, moment, VICTIMS[number // 3 % 3], chance)
        print("  ".join(f"{cell:<20}" for cell in row))
        assert row[3] in {"0", "not severed"}
        assert row[3] == "0" or moment == "while severing"
        assert world.network() == network


def test_kills_at_random_moments(world: World) -> None:
    rounds(world, 5, seed=7)


@pytest.mark.slow
def test_kills_at_random_moments_many_times(world: World) -> None:
    rounds(world, 50, seed=11)


@pytest.mark.parametrize("mode", MODES)
def test_whoever_holds_the_lock_keeps_it_severed(world: World, mode: Mode) -> None:
    world.helper()
    hold, job = job_with_lock(world)
    severed = sever(world.socket, gap(mode), hold.fd)
    hold.release()
    with pytest.raises(Refused, match="still holds the lock"):
        severed.lift(deadline_s=1)
    with pytest.raises(Refused, match="earlier gap"), Hold.create(world.folder / "other") as other:
        sever(world.socket, gap(mode), other.fd)
    with pytest.raises(Refused, match="a job may live"):
        restore(world.socket, force=False, interface=None)
    assert not world.reaches(WAN)
    world.end(job)
    severed.lift()
    severed.lift()  # the same answer again


TAMPERING: dict[str, tuple[Mode, tuple[str, ...], str]] = {
    "up and down again": ("link", ("ip link set wan0 up", "ip link set wan0 down"), "wan0 was set up"),
    "up": ("link", ("ip link set wan0 up",), "wan0 was set up"),
    "another way out": ("link", ("ip route add default via 10.9.0.1",), "out through lan0"),
    "half of a way out": ("nftables", ("ip route add 128.0.0.0/1 via 10.9.0.1",), "out through lan0"),
    "another way out by IPv6": ("nftables", ("ip -6 route add 2000::/3 via fd09::1",), "out through lan0"),
    "another way out in another table": (
        "link",
        ("ip route add default via 10.9.0.1 table 7",),
        "out through lan0",
    ),
    "deleted": ("link", ("ip link del wan0",), "wan0 is gone"),
    "rules flushed": ("nftables", ("nft flush ruleset",), "tables were "),
    "renamed": (
        "nftables",
        ("ip link set wan0 down", "ip link set wan0 name wan9", "ip link set wan9 up"),
        "renamed",
    ),
    "rule added": ("nftables", ("nft insert rule netdev rapha_airgap out0 accept",), "tables were "),
    "dormant": ("nftables", ("nft add table netdev rapha_airgap { flags dormant; }",), "tables were "),
}


USUAL = {"up and down again", "another way out", "deleted", "rules flushed", "renamed"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in USUAL else pytest.mark.slow) for c in TAMPERING]
)
def test_tampering_is_told(world: World, case: str) -> None:
    mode, commands, said = TAMPERING[case]
    world.helper()
    with Hold.create(world.folder / "hold") as hold:
        severed = sever(world.socket, gap(mode), hold.fd)
        for command in commands:
            world.run(*command.split())
        until(lambda: said in state(world.socket).broken)
        with pytest.raises(Refused, match=said):
            severed.check()
    with pytest.raises(Refused, match="did not hold"):
        severed.lift()
    assert "rapha" not in world.run("nft", "list", "ruleset")


@pytest.mark.parametrize(
    ("mode", "command"), [("link", "ip link set wan0 up"), ("nftables", "nft flush ruleset")]
)
def test_what_was_opened_is_closed_again(world: World, mode: Mode, command: str) -> None:
    world.helper()
    with Hold.create(world.folder / "hold") as hold:
        sever(world.socket, gap(mode), hold.fd)
        world.run(*command.split())
        until(lambda: bool(state(world.socket).broken))
        assert not world.reaches(WAN)


def test_changes_while_no_helper_lives_are_told(world: World) -> None:
    helper = world.helper()
    hold = Hold.create(world.folder / "hold")
    severed = sever(world.socket, gap("nftables"), hold.fd)
    world.end(helper)
    rules = world.run("nft", "list", "ruleset")
    world.run("nft", "flush", "ruleset")
    subprocess.run([*world.enter(world.hospital), "nft", "-f", "-"], input=rules, text=True, check=True)
    world.helper()
    until(lambda: "tables were deleted" in state(world.socket).broken)
    hold.release()
    with pytest.raises(Refused, match="did not hold"):
        severed.lift()


REFUSED: dict[str, tuple[Gap, str]] = {
    "no such interface": (Gap("wan1", "link"), "there is no interface"),
    "loopback": (Gap("lo", "link"), "loopback"),
    "not the way out": (Gap("lan0", "link"), "leads out through wan0"),
    "the world as LAN": (Gap("wan0", "nftables", ("0.0.0.0/1",)), "wider than /8"),
    "host bits": (Gap("wan0", "nftables", ("10.8.0.1/24",)), "not a network"),
    "long form": (Gap("wan0", "nftables", ("10.8.0.0/255.255.255.0",)), "write it as"),
    "multicast": (Gap("wan0", "nftables", ("224.0.0.0/8",)), "not unicast"),
    "a name with a slash": (Gap("../wan0", "link"), "interface"),
}


def test_refusals_change_nothing(world: World) -> None:
    world.helper()
    for case, (asked, said) in REFUSED.items():
        network = world.network()
        with Hold.create(world.folder / "hold") as hold, pytest.raises(Refused, match=said) as refused:
            sever(world.socket, asked, hold.fd)
        assert refused.value.code == "posture.seal_failed", case
        assert world.network() == network
        assert state(world.socket).phase == "open"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("ip route add default via 10.9.0.1 metric 9", "leads out through lan0"),
        ("ip link add br0 type bridge; ip link set wan0 master br0", "is a port of br0"),
    ],
)
def test_networks_that_one_interface_does_not_sever(world: World, before: str, said: str) -> None:
    world.run("sh", "-ec", before)
    world.helper()
    with Hold.create(world.folder / "hold") as hold, pytest.raises(Refused, match=said):
        sever(world.socket, gap("link"), hold.fd)
    assert state(world.socket).phase == "open"


BRIDGE = f"""
ip link add br0 type bridge; ip link set wan0 master br0; ip link set br0 up
ip link add link br0 name up5 type macvlan; ip link set up5 up
ip addr add 10.55.0.2/24 dev up5; ip addr add fd55::2/64 dev up5 nodad
ip addr flush dev wan0; ip addr add 198.51.100.2/24 dev br0; ip route add default via {WAN}
ip route add 10.56.0.0/16 via 10.55.0.1; ip route add fd56::/64 via fd55::1
"""


def test_a_bridge_is_severed_with_its_ports_and_what_is_on_it(world: World) -> None:
    world.run("sh", "-ec", BRIDGE)
    assert world.reaches(WAN, wait_s=GENEROUS_S)
    network = world.network()
    world.helper()
    hold = Hold.create(world.folder / "hold")
    severed = sever(world.socket, Gap("br0", "link"), hold.fd)
    links = world.run("ip", "-o", "link")
    assert links.count("state DOWN") >= 3
    hold.release()
    severed.lift()
    # A route whose gateway the kernel knows no way to any more comes back as well, marked as on the link.
    after = world.network().replace(" onlink", "")
    assert set(network.splitlines()) <= set(after.splitlines())
    assert world.reaches(WAN, wait_s=GENEROUS_S)


def test_the_lock_must_be_held_and_be_the_file_named(world: World) -> None:
    world.helper()
    with (world.folder / "loose").open("w") as loose, pytest.raises(Refused, match="nobody holds"):
        sever(world.socket, gap("link"), loose.fileno())
    with Hold.create(world.folder / "hold") as hold:
        hold.path.unlink()
        with pytest.raises(Refused, match="hold"):
            sever(world.socket, gap("link"), hold.fd)


@pytest.mark.parametrize("damage", [b"", b'{"content":{},"sha256":"0"}'])
def test_a_damaged_journal_holds_what_is_severed(world: World, damage: bytes) -> None:
    helper = world.helper()
    hold = Hold.create(world.folder / "hold")
    severed = sever(world.socket, gap("nftables"), hold.fd)
    world.end(helper)
    (world.folder / "j" / "airgap.json").write_bytes(damage)
    hold.release()
    world.helper()
    assert state(world.socket).phase == "unknown"
    assert not world.reaches(WAN)
    with pytest.raises(Refused, match="damaged"):
        severed.lift()
    with Hold.create(world.folder / "hold") as again, pytest.raises(Refused, match="damaged"):
        sever(world.socket, gap("nftables"), again.fd)
    with pytest.raises(Refused, match="only --force"):
        restore(world.socket, force=False, interface=None)
    assert restore(world.socket, force=True, interface=None).phase == "open"
    assert world.reaches(WAN)


def test_an_operator_sets_the_interface_up_where_the_journal_is_lost(world: World) -> None:
    helper = world.helper()
    with Hold.create(world.folder / "hold") as hold:
        sever(world.socket, gap("link"), hold.fd)
    world.end(helper)
    (world.folder / "j" / "airgap.json").write_bytes(b"lost")
    world.helper()
    with pytest.raises(Refused, match="there is no interface"):
        restore(world.socket, force=True, interface="wan7")
    assert restore(world.socket, force=True, interface="wan0").phase == "open"
    assert "wan0@" in world.run("ip", "-o", "link", "show", "up")


def test_after_a_reboot_only_our_tables_are_looked_for(world: World) -> None:
    helper = world.helper()
    with Hold.create(world.folder / "hold") as hold:
        severed = sever(world.socket, gap("nftables"), hold.fd)
        world.end(helper)
        journal = Journal(world.folder / "j")
        found = journal.record()
        assert found is not None
        journal.write(found.now(boot="another"))
        journal.close()
        world.helper()  # the lock is held, but by nobody of that boot
        with pytest.raises(Refused, match="restarted"):
            severed.lift()
    assert "rapha" not in world.run("nft", "list", "ruleset")


def test_tables_without_a_journal_are_held_too(world: World) -> None:
    helper = world.helper()
    with Hold.create(world.folder / "hold") as hold:
        sever(world.socket, gap("nftables"), hold.fd)
        world.end(helper)
        (world.folder / "j" / "airgap.json").unlink()
    world.helper()
    assert "no journal says why" in state(world.socket).note


def test_restoring_by_force_breaks_the_gap(world: World) -> None:
    world.helper()
    with Hold.create(world.folder / "hold") as hold:
        severed = sever(world.socket, gap("link"), hold.fd)
        assert restore(world.socket, force=True, interface=None).phase == "open"
        with pytest.raises(Refused, match="operator"):
            severed.lift()
    assert world.reaches(WAN)


LOCAL = """
import os, sys, socket as unix
from pathlib import Path
from rapha.node.posture.airgap.client import Gap, Hold, default_wan, local, probe, sever
from rapha.node.posture.airgap.wire import peer
folder, wan = Path(sys.argv[1]), sys.argv[2]
assert probe(wan, 7000) == "reachable" and probe(wan, 7001) == "reachable"
with local(folder) as socket, Hold.create(folder) as hold:
    severed = sever(socket, Gap(default_wan(), "link"), hold.fd)
    assert probe(wan, 7000) == "unreachable"
    with unix.socket(unix.AF_UNIX) as connection:
        connection.connect(str(socket))
        status = Path(f"/proc/{peer(connection).pid}/status").read_text()
    for line in ("CapEff:\\t0000000000001000", "CapBnd:\\t0000000000001000", "NoNewPrivs:\\t1"):
        assert line in status, status
    if sys.argv[3] == "die":
        os._exit(9)
    hold.release()
    print(severed.lift())
"""


def test_a_helper_of_ones_own(world: World) -> None:
    network = world.network()
    first = world.python(LOCAL, str(world.folder / "local"), WAN, "live")
    assert first.wait(30) == 0
    assert world.python(LOCAL, str(world.folder / "local"), WAN, "die").wait(30) == 9
    until(lambda: world.network() == network)
    assert world.python(LOCAL, str(world.folder / "local"), WAN, "live").wait(30) == 0


@pytest.mark.parametrize(
    ("mode", "command"), [("link", "ip link set wan0 up"), ("nftables", "nft flush ruleset")]
)
def test_a_full_disk_opens_nothing_and_keeps_nobody_dark(world: World, mode: Mode, command: str) -> None:
    network = world.network()
    helper = world.helper()
    hold, job = job_with_lock(world)
    severed = sever(world.socket, gap(mode), hold.fd)
    unlimited = resource.prlimit(helper.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    world.run(*command.split())
    until(lambda: "File too large" in state(world.socket).note)
    assert not world.reaches(WAN)
    assert state(world.socket).broken
    world.end(job)
    hold.release()
    until(lambda: world.reaches(WAN))
    assert state(world.socket).phase == "restoring"
    resource.prlimit(helper.pid, resource.RLIMIT_FSIZE, unlimited)
    with pytest.raises(Refused, match="did not hold"):
        severed.lift()
    until(lambda: world.network() == network)


def test_force_puts_back_all_though_a_job_holds_the_lock(world: World) -> None:
    network = world.network()
    world.helper()
    hold, _ = job_with_lock(world)
    sever(world.socket, gap("link"), hold.fd)
    hold.release()
    restore(world.socket, force=True, interface=None)
    until(lambda: state(world.socket).phase == "open")
    assert world.network() == network
