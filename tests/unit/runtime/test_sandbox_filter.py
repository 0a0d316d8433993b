"""The committed filters, run by a small BPF interpreter, and compiled again where libseccomp is there."""

import ctypes.util
import errno
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from rapha.runtime.sandbox import seccomp
from rapha.spec.refusals import Refused

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
EPERM: Final = 0x00050000 | errno.EPERM
ENOSYS: Final = 0x00050000 | errno.ENOSYS
AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
TOOL: Final = Path(__file__).parents[3] / "tools/gen_seccomp.py"
AF: Final = {
    "INET": 2,
    "AX25": 3,
    "INET6": 10,
    "NETLINK": 16,
    "PACKET": 17,
    "ALG": 38,
    "VSOCK": 40,
    "XDP": 44,
}
HIGH: Final = 1 << 32


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the filter returns for one call (classic BPF over struct seccomp_data)."""
    words = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, when_true, when_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", words, k)[0]
            case 0x54:
                accumulator &= k
            case 0x15:
                at += when_true if accumulator == k else when_false
            case 0x25:
                at += when_true if accumulator > k else when_false
            case 0x35:
                at += when_true if accumulator >= k else when_false
            case 0x05:
                at += k
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


X86: Final = {
    "read": 0,
    "mmap": 9,
    "ioctl": 16,
    "socket": 41,
    "socketpair": 53,
    "clone": 56,
    "execve": 59,
    "ptrace": 101,
    "personality": 135,
    "prctl": 157,
    "shmget": 29,
    "msgget": 68,
    "setuid": 105,
    "chroot": 161,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "init_module": 175,
    "delete_module": 176,
    "setsockopt": 54,
    "setxattr": 188,
    "lsetxattr": 189,
    "fsetxattr": 190,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "vmsplice": 278,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "seccomp": 317,
    "memfd_create": 319,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_setup": 206,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "clone3": 435,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
    "pivot_root": 155,
    "reboot": 169,
    "sethostname": 170,
    "iopl": 172,
    "syslog": 103,
    "mq_open": 240,
    "mknod": 133,
    "mknodat": 259,
    "ustat": 136,
    "sysfs": 139,
    "quotactl": 179,
    "acct": 163,
}
REFUSED: Final = [
    "ptrace",
    "shmget",
    "msgget",
    "setuid",
    "chroot",
    "mount",
    "umount2",
    "swapon",
    "init_module",
    "delete_module",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "add_key",
    "request_key",
    "keyctl",
    "unshare",
    "vmsplice",
    "perf_event_open",
    "fanotify_init",
    "open_by_handle_at",
    "setns",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "finit_module",
    "seccomp",
    "memfd_create",
    "kexec_load",
    "kexec_file_load",
    "bpf",
    "userfaultfd",
    "io_setup",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "open_tree",
    "move_mount",
    "fsopen",
    "pidfd_getfd",
    "mount_setattr",
    "memfd_secret",
    "pivot_root",
    "reboot",
    "sethostname",
    "iopl",
    "syslog",
    "mq_open",
    "mknod",
    "ustat",
    "sysfs",
    "quotactl",
    "acct",
]


def x86(call: str, *arguments: int) -> int:
    return run(seccomp.load("x86_64").program, AUDIT["x86_64"], X86[call], *arguments)


@pytest.mark.parametrize("call", REFUSED)
def test_calls_that_no_job_needs_are_refused(call: str) -> None:
    assert x86(call) == EPERM


def test_ordinary_calls_pass() -> None:
    assert {x86(call) for call in ("read", "execve")} == {ALLOW}


@pytest.mark.parametrize("family", AF.values(), ids=AF)
@pytest.mark.parametrize("call", ["socket", "socketpair"])
@pytest.mark.parametrize("upper", [0, HIGH])
def test_no_socket_but_unix(call: str, family: int, upper: int) -> None:
    assert x86(call, family + upper) == EPERM


@pytest.mark.parametrize("upper", [0, HIGH])
def test_no_socket_gets_a_larger_send_buffer(upper: int) -> None:
    large = (7 + upper, 32 + upper)  # SO_SNDBUF, SO_SNDBUFFORCE
    assert {x86("setsockopt", 3, 1, option) for option in large} == {EPERM}
    assert x86("setsockopt", 3, 1, 2) == ALLOW


def test_unix_sockets_pass() -> None:
    assert {x86("socket", 1), x86("socketpair", 1), x86("socketpair", 1, 5)} == {ALLOW}


def test_every_family_number_is_refused_but_one() -> None:
    assert [family for family in range(256) if x86("socket", family) == ALLOW] == [1]


NEW_NAMESPACES: Final = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


@pytest.mark.parametrize("flag", NEW_NAMESPACES.values(), ids=NEW_NAMESPACES)
@pytest.mark.parametrize("others", [0, 17, 0x3D0F00, HIGH])
def test_no_clone_with_a_new_namespace(flag: int, others: int) -> None:
    assert x86("clone", flag | others) == EPERM


def test_threads_and_forks_pass_and_clone3_sends_the_library_to_clone() -> None:
    assert (x86("clone", 0x3D0F00), x86("clone", 0x1200011), x86("clone3")) == (ALLOW, ALLOW, ENOSYS)


@pytest.mark.parametrize("command", [0x5412, 0x541C, 0x5414, 0x8933, 0x5411, 0x40045431])
@pytest.mark.parametrize("upper", [0, HIGH])
def test_ioctl_is_a_short_list_without_tiocsti_and_tioclinux(command: int, upper: int) -> None:
    assert x86("ioctl", 0, command + upper) == EPERM


def test_ioctls_that_python_needs_pass() -> None:
    assert {x86("ioctl", 0, command) for command in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)} == {
        ALLOW
    }


def test_personality_may_only_be_asked_for() -> None:
    assert (x86("personality", 0xFFFFFFFF), x86("personality", 0x40000), x86("personality", 0)) == (
        ALLOW,
        EPERM,
        EPERM,
    )


@pytest.mark.parametrize("option", [4, 22, 23 + HIGH, 8, 10, 24, 28, 47, 0x59616D61])
def test_prctl_changes_nothing_of_the_walls(option: int) -> None:
    assert x86("prctl", option) == (ALLOW if option & 0xFFFFFFFF == 23 else EPERM)


SHARED, PRIVATE, VALIDATE, ANONYMOUS, HUGE = 1, 2, 3, 0x20, 0x40000


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (PRIVATE | ANONYMOUS, ALLOW),
        (PRIVATE | ANONYMOUS | 0x20000, ALLOW),
        (PRIVATE, ALLOW),
        (SHARED, ALLOW),
        (SHARED | ANONYMOUS, EPERM),
        (SHARED | ANONYMOUS | HIGH, EPERM),
        (VALIDATE | ANONYMOUS, EPERM),
        (PRIVATE | ANONYMOUS | HUGE, EPERM),
    ],
)
def test_memory_that_no_supervisor_can_count_is_refused(flags: int, verdict: int) -> None:
    assert x86("mmap", 0, 4096, 3, flags) == verdict


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o010600, ALLOW), (0o100600, ALLOW), (0o020600, EPERM), (0o060600, EPERM)]
)
def test_no_device_nodes(mode: int, verdict: int) -> None:
    assert x86("mknodat", 0, 0, mode) == verdict


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_foreign_abis_die(arch: str) -> None:
    program = seccomp.load(arch).program
    for other in set(AUDIT) - {arch}:
        assert {run(program, AUDIT[other], number) for number in (0, 1, 11, 59, 221, 460, 0x40000000)} == {
            KILL
        }


@pytest.mark.parametrize("number", [0x40000000, 0x40000000 + 39, 0x40000000 + 520])
def test_x32_dies(number: int) -> None:
    assert run(seccomp.load("x86_64").program, AUDIT["x86_64"], number) == KILL


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_calls_newer_than_the_list_do_not_exist(arch: str) -> None:
    program = seccomp.load(arch).program
    assert {run(program, AUDIT[arch], number) for number in (452, 461, 511, 100_000)} == {ENOSYS}


AARCH64: Final = {
    "ptrace": 117,
    "mount": 40,
    "unshare": 97,
    "setns": 268,
    "bpf": 280,
    "io_uring_setup": 425,
    "memfd_create": 279,
    "process_vm_readv": 270,
    "keyctl": 219,
    "perf_event_open": 241,
}


@pytest.mark.parametrize("number", AARCH64.values(), ids=AARCH64)
def test_the_other_architecture_refuses_the_same(number: int) -> None:
    assert run(seccomp.load("aarch64").program, AUDIT["aarch64"], number) == EPERM


def test_the_other_architecture_conditions() -> None:
    program, arch = seccomp.load("aarch64").program, AUDIT["aarch64"]
    assert [family for family in range(64) if run(program, arch, 198, family) == ALLOW] == [1]
    assert run(program, arch, 220, 0x10000011) == EPERM
    assert run(program, arch, 220, 17) == ALLOW
    assert run(program, arch, 435) == ENOSYS
    assert run(program, arch, 63) == ALLOW


def test_an_architecture_without_a_filter_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        seccomp.load("riscv64")
    assert refused.value.code == "node.sandbox_unavailable"


@pytest.fixture
def generator() -> Iterator[ModuleType]:
    if not ctypes.util.find_library("seccomp") or not importlib.util.find_spec("pyseccomp"):
        pytest.skip("libseccomp is not here")
    spec = importlib.util.spec_from_file_location("gen_seccomp", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_committed_filter_is_what_the_generator_makes(generator: ModuleType, arch: str) -> None:
    if generator.compiler_version() != (seccomp.FILTERS / "libseccomp.version").read_text().strip():
        pytest.skip("another libseccomp, which may emit other bytes for the same rules")
    assert generator.compile_filter(arch) == seccomp.load(arch).program
