"""Out over a socket: families, listeners of the host, names, and what the kernel tells about the network."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from rapha.runtime.sandbox.probe.attempts import names
from rapha.runtime.sandbox.probe.attempts.kit import (
    ABSENT,
    SCRATCH,
    Catalogue,
    HeldError,
    Try,
    World,
    call,
    past,
    proof,
    read,
)

NETWORK: Final = Catalogue()
WAIT_S: Final = 1.0
"""A connection that nobody answers is refused; this is how long that may take."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_AF_XDP, _AF_KEY, _AF_SMC, _PROTO_MPTCP, _SO_ATTACH_FILTER = 44, 15, 43, 262, 26

_FAMILIES: Final = {
    # name: what, family, type, protocol, the control's place
    "inet_stream": ("an IPv4 TCP socket", 2, 1, 0, "host"),
    "inet_dgram": ("an IPv4 UDP socket", 2, 2, 0, "host"),
    "inet_mptcp": ("an IPv4 multipath TCP socket", 2, 1, _PROTO_MPTCP, "host"),
    "inet_raw": ("a raw ICMP socket", 2, 3, 1, SCRATCH),
    "inet6_stream": ("an IPv6 TCP socket", 10, 1, 0, "host"),
    "inet6_dgram": ("an IPv6 UDP socket", 10, 2, 0, "host"),
    "inet6_raw": ("a raw ICMPv6 socket", 10, 3, 58, SCRATCH),
    "packet": ("a link-layer socket", 17, 3, 0, SCRATCH),
    "netlink_route": ("a socket to the kernel's routing", 16, 3, 0, "host"),
    "netlink_audit": ("a socket to the kernel's audit", 16, 3, 9, "host"),
    "netlink_uevent": ("a socket to the kernel's device events", 16, 3, 15, "host"),
    "vsock": ("a socket to the hypervisor", 40, 1, 0, "host"),
    "alg": ("a socket to the kernel's ciphers", 38, 5, 0, "host"),
    "bluetooth": ("a Bluetooth socket", 31, 5, 0, "host"),
    "can": ("a CAN bus socket", 29, 3, 1, "host"),
    "tipc": ("a cluster socket (TIPC)", 30, 2, 0, "host"),
    "smc": ("a shared-memory socket (SMC)", _AF_SMC, 1, 0, "host"),
    "key": ("an IPsec key socket", _AF_KEY, 3, 2, SCRATCH),
    "xdp": ("an express data path socket", _AF_XDP, 3, 0, SCRATCH),
}


def _family(family: int, kind: int, protocol: int) -> Try:
    def attempt(_: World) -> str:
        socket.socket(family, kind, protocol).close()
        return f"socket({family}, {kind}, {protocol})"

    return attempt


for _name, (_what, _number, _type, _protocol, _place) in _FAMILIES.items():
    NETWORK.add(
        f"network.{_name}", f"make {_what}", _family(_number, _type, _protocol), place=_place, absent=ABSENT
    )


def _receive(end: socket.socket, world: World) -> str:
    end.settimeout(WAIT_S)
    return proof(end.recv(4096), world)


def _given(port: int) -> int:
    """`port`, unless the host itself could not listen there."""
    if not port:
        raise OSError(errno.EAFNOSUPPORT, "the host has no such loopback")
    return port


@NETWORK.attempt("network.tcp4", "connect to a TCP listener on the host's loopback")
def _tcp4(world: World) -> str:
    with socket.create_connection(("127.0.0.1", world.tcp4), WAIT_S) as end:
        return _receive(end, world)


@NETWORK.attempt("network.tcp6", "connect to an IPv6 TCP listener on the host's loopback", absent=ABSENT)
def _tcp6(world: World) -> str:
    with socket.create_connection(("::1", _given(world.tcp6)), WAIT_S) as end:
        return _receive(end, world)


@NETWORK.attempt("network.udp4", "exchange datagrams with the host's loopback")
def _udp4(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"?", ("127.0.0.1", world.udp4))
        return _receive(end, world)


@NETWORK.attempt("network.udp6", "exchange IPv6 datagrams with the host's loopback", absent=ABSENT)
def _udp6(world: World) -> str:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as end:
        end.sendto(b"?", ("::1", _given(world.udp6)))
        return _receive(end, world)


@NETWORK.attempt("network.tcp_fastopen", "send with the first packet, without connect()")
def _fastopen(world: World) -> str:
    with socket.socket(socket.AF_INET) as end:
        end.sendto(b"?", socket.MSG_FASTOPEN, ("127.0.0.1", world.tcp4))
        return _receive(end, world)


@NETWORK.attempt("network.listen", "wait for connections on every address")
def _listen(_: World) -> str:
    with socket.create_server(("0.0.0.0", 0)) as listener:  # noqa: S104  that is the attempt
        return f"listens on port {listener.getsockname()[1]}"


@NETWORK.attempt("network.dns_datagram", "ask a name server by hand")
def _dns(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(names.question(), ("127.0.0.1", world.udp4))
        end.settimeout(WAIT_S)
        if not end.recv(512).endswith(socket.inet_aton(names.ADDRESS)):
            raise HeldError("no answer of the host's name server")
    return f"{names.NAME} is {names.ADDRESS}"


@NETWORK.attempt("network.dns_library", "resolve a name as any program does", place=SCRATCH)
def _getaddrinfo(_: World) -> str:
    found = {str(answer[4][0]) for answer in socket.getaddrinfo(names.NAME, 80, socket.AF_INET)}
    if found != {names.ADDRESS}:
        raise HeldError(f"answered {sorted(found)}")
    return f"{names.NAME} is {names.ADDRESS}"


def _unix(address: str, world: World) -> str:
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(WAIT_S)
        end.connect(address)
        return _receive(end, world)


def _unix_datagram(address: str, world: World) -> str:
    own = f"{world.tmp}/answer-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(own)
        try:
            end.connect(address)
            end.send(b"?")
            return _receive(end, world)
        finally:
            os.unlink(own)  # noqa: PTH108


NETWORK.add(
    "network.unix_abstract",
    "connect to an abstract unix socket of the host",
    lambda world: _unix(f"\0{world.abstract}", world),
)
NETWORK.add(
    "network.unix_named",
    "connect to a unix socket by its path, as to a container engine's",
    lambda world: _unix(f"{world.folder}/named", world),
)
NETWORK.add(
    "network.unix_datagram",
    "send to a unix datagram socket by its path, as to the system log",
    lambda world: _unix_datagram(f"{world.folder}/datagram", world),
)
NETWORK.add(
    "network.unix_up",
    "the same through /proc/self/cwd and ..",
    lambda world: _unix(f"/proc/self/cwd/{'../' * 9}{world.folder}/named", world),
)


@NETWORK.attempt("network.interface_up", "bring a network interface up", place=SCRATCH)
def _interface_up(_: World) -> str:
    bring_up_loopback()
    return "lo is up"


def bring_up_loopback() -> None:
    """Set IFF_UP on `lo` of this network namespace; OSError without CAP_NET_ADMIN in it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        request = array.array("B", struct.pack("16sh14x", b"lo", 0))
        fcntl.ioctl(end, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", request, 16)[0] | _IFF_UP
        fcntl.ioctl(end, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


@NETWORK.attempt("network.interfaces", "see the host's network interfaces", absent=ABSENT)
def _interfaces(world: World) -> str:
    if not world.interfaces:
        raise OSError(errno.ENODEV, "the host has but its loopback")
    lines = read("/proc/net/dev").decode().splitlines()[2:]
    seen = {line.partition(":")[0].strip() for line in lines} & set(world.interfaces)
    if not seen:
        raise HeldError("none of the host's in /proc/net/dev")
    return f"sees {', '.join(sorted(seen))}"


@NETWORK.attempt("network.connections", "see the host's TCP sockets")
def _connections(world: World) -> str:
    if f":{world.tcp4:04X} ".encode() not in read("/proc/net/tcp"):
        raise HeldError("the host's listener is not in /proc/net/tcp")
    return "sees the host's listener"


@NETWORK.attempt("network.unix_names", "see the host's unix sockets")
def _unix_names(world: World) -> str:
    with open("/proc/net/unix", "rb") as table:  # noqa: PTH123
        if world.abstract.encode() not in table.read():
            raise HeldError("the host's listener is not in /proc/net/unix")
    return "sees the host's listener"


@NETWORK.attempt("network.io_uring", "make an io_uring, which no socket filter sees into", absent=ABSENT)
def _io_uring(_: World) -> str:
    os.close(call("io_uring_setup", 4, bytes(120)))
    return "io_uring_setup"


for _call in ("io_uring_enter", "io_uring_register"):
    NETWORK.add(
        f"network.{_call}",
        f"submit to an io_uring that somebody else made ({_call})",
        lambda _, name=_call: past({errno.EBADF, errno.EOPNOTSUPP}, name, 0, 0, 0, 0, 0, 0),  # type: ignore[misc]
        absent=ABSENT,
    )


@NETWORK.attempt("network.socket_filter", "load packet-filter code into the kernel through a socket")
def _socket_filter(_: World) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = array.array("Q", [0x0000FFFF_00000006])  # one instruction: accept
        ours.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", 1, program.buffer_info()[0])
        )
    return "the kernel runs a filter of ours"


@NETWORK.attempt("network.send_buffer", "hold more in socket buffers than the host's default")
def _send_buffer(_: World) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return "SO_SNDBUF = 1 MiB"
