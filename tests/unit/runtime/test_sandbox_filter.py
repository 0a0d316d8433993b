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
LANDLOCK: Final = {
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
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
    "io_setup": 0,
    "setxattr": 5,
    "lsetxattr": 6,
    "fsetxattr": 7,
    "ioctl": 29,
    "mknodat": 33,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "chroot": 51,
    "openat": 56,
    "quotactl": 60,
    "read": 63,
    "vmsplice": 75,
    "splice": 76,
    "tee": 77,
    "acct": 89,
    "personality": 92,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "delete_module": 106,
    "syslog": 116,
    "ptrace": 117,
    "reboot": 142,
    "setuid": 146,
    "sethostname": 161,
    "prctl": 167,
    "mq_open": 180,
    "msgget": 186,
    "shmget": 194,
    "socket": 198,
    "socketpair": 199,
    "setsockopt": 208,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "clone": 220,
    "execve": 221,
    "mmap": 222,
    "swapon": 224,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "open_by_handle_at": 265,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "finit_module": 273,
    "seccomp": 277,
    "memfd_create": 279,
    "bpf": 280,
    "userfaultfd": 282,
    "kexec_file_load": 294,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "clone3": 435,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "memfd_secret": 447,
}
NUMBERS: Final = {"x86_64": {**X86, **LANDLOCK}, "aarch64": AARCH64}


@pytest.mark.parametrize("call", [call for call in REFUSED if call in AARCH64])
def test_the_other_architecture_refuses_the_same(call: str) -> None:
    assert run(seccomp.load("aarch64").program, AUDIT["aarch64"], AARCH64[call]) == EPERM


def test_what_one_architecture_refuses_and_the_other_does_not_have() -> None:
    absent = {"iopl", "mknod", "sysfs", "ustat"}
    assert {call for call in REFUSED if call not in AARCH64} == absent


RULES: Final[dict[str, tuple[str, tuple[int, ...], int]]] = {
    "landlock: a ruleset": ("landlock_create_ruleset", (0, 24, 0), ALLOW),
    "landlock: its version": ("landlock_create_ruleset", (0, 0, 1), ALLOW),
    "landlock: a rule": ("landlock_add_rule", (5, 1, 0, 0), ALLOW),
    "landlock: a domain": ("landlock_restrict_self", (5, 0), ALLOW),
    "clone3 does not exist": ("clone3", (0, 88), ENOSYS),
    "a unix socket": ("socket", (1, 1), ALLOW),
    "a unix pair": ("socketpair", (1, 5), ALLOW),
    "no family": ("socket", (0,), EPERM),
    "an inet socket": ("socket", (2, 1), EPERM),
    "an inet pair": ("socketpair", (2, 1), EPERM),
    "unix and a bit above": ("socket", (1 | 1 << 31,), EPERM),
    "a thread": ("clone", (0x3D0F00,), ALLOW),
    "a fork": ("clone", (0x1200011,), ALLOW),
    **{f"clone {name}": ("clone", (flag | 17,), EPERM) for name, flag in NEW_NAMESPACES.items()},
    "what personality is": ("personality", (0xFFFFFFFF,), ALLOW),
    "no address randomisation": ("personality", (0x40000,), EPERM),
    "read that implies execute": ("personality", (0x400000,), EPERM),
    "is it a terminal": ("ioctl", (0, 0x5401), ALLOW),
    "type for the terminal": ("ioctl", (0, 0x5412), EPERM),
    "paste into the console": ("ioctl", (0, 0x541C), EPERM),
    "take the terminal": ("ioctl", (0, 0x540E), EPERM),
    "no new privileges": ("prctl", (38, 1), ALLOW),
    "keep capabilities": ("prctl", (8, 1), EPERM),
    "filter mode": ("prctl", (22, 2), EPERM),
    "be dumpable": ("prctl", (4, 1), EPERM),
    "be a subreaper": ("prctl", (36, 1), EPERM),
    "ambient capability": ("prctl", (47, 2, 21), EPERM),
    "be traced": ("prctl", (0x59616D61, 1), EPERM),
    "pass credentials": ("setsockopt", (3, 1, 16), ALLOW),
    "a larger send buffer": ("setsockopt", (3, 1, 7), EPERM),
    "a larger send buffer by force": ("setsockopt", (3, 1, 32), EPERM),
    "a filter on a socket": ("setsockopt", (3, 1, 26), EPERM),
    "private memory": ("mmap", (0, 4096, 3, PRIVATE | ANONYMOUS), ALLOW),
    "a shared file": ("mmap", (0, 4096, 3, SHARED), ALLOW),
    "shared memory": ("mmap", (0, 4096, 3, SHARED | ANONYMOUS), EPERM),
    "shared memory, validated": ("mmap", (0, 4096, 3, VALIDATE | ANONYMOUS), EPERM),
    "huge pages": ("mmap", (0, 4096, 3, PRIVATE | ANONYMOUS | HUGE), EPERM),
    "a pipe by name": ("mknodat", (0, 0, 0o010600), ALLOW),
    "a file": ("mknodat", (0, 0, 0o100600), ALLOW),
    "a character device": ("mknodat", (0, 0, 0o020600), EPERM),
    "a block device": ("mknodat", (0, 0, 0o060600), EPERM),
}
"""Call, arguments and verdict, the same on every architecture."""


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_every_architecture(rule: str, arch: str) -> None:
    call, arguments, verdict = RULES[rule]
    assert run(seccomp.load(arch).program, AUDIT[arch], NUMBERS[arch][call], *arguments) == verdict


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("upper", [HIGH, 0xFFFFFFFF << 32, 1 << 63])
def test_the_half_that_the_kernel_ignores_changes_no_verdict(rule: str, arch: str, upper: int) -> None:
    call, arguments, verdict = RULES[rule]
    wide = [argument | upper for argument in arguments]
    assert run(seccomp.load(arch).program, AUDIT[arch], NUMBERS[arch][call], *wide) == verdict


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize("rule", RULES)
def test_no_rule_holds_for_another_abi(rule: str, arch: str) -> None:
    call, arguments, _ = RULES[rule]
    program, number = seccomp.load(arch).program, NUMBERS[arch][call]
    for other in set(AUDIT) - {arch}:
        assert run(program, AUDIT[other], number, *arguments) == KILL
    if arch == "x86_64":
        assert run(program, AUDIT[arch], number | 0x40000000, *arguments) == KILL


@pytest.mark.parametrize("arch", NUMBERS)
def test_the_allowed_numbers_are_the_generators_and_no_others(generator: ModuleType, arch: str) -> None:
    wanted = generator.ARCHES[arch]
    found = {generator.seccomp.resolve_syscall(wanted, call) for call in generator.ALLOWED}
    program = seccomp.load(arch).program
    allowed = {n for n in range(generator.FIRST_UNKNOWN) if run(program, AUDIT[arch], n) == ALLOW}
    no_arguments = {NUMBERS[arch][call] for call in ("clone", "mmap")}  # all zero is harmless
    assert allowed == {number for number in found if number >= 0} | no_arguments


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize(
    ("call", "table", "position"),
    [("ioctl", "IOCTLS", 1), ("prctl", "PRCTLS", 0), ("setsockopt", "SOCKET_OPTIONS", 2)],
)
def test_the_short_lists_are_what_is_let_through(
    generator: ModuleType, arch: str, call: str, table: str, position: int
) -> None:
    wanted = set(getattr(generator, table).values())
    near = {number + step for number in wanted for step in (-1, 0, 1, 256, 1 << 16, 1 << 31)}
    program, number = seccomp.load(arch).program, NUMBERS[arch][call]
    asked = near | set(range(128))
    allowed = {n for n in asked if run(program, AUDIT[arch], number, *[0] * position, n) == ALLOW}
    assert allowed == wanted


def test_an_architecture_without_a_filter_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        seccomp.load("riscv64")
    assert refused.value.code == "node.sandbox_unavailable"


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_committed_filter_is_what_the_generator_makes(generator: ModuleType, arch: str) -> None:
    if generator.compiler_version() != (seccomp.FILTERS / "libseccomp.version").read_text().strip():
        pytest.skip("another libseccomp, which may emit other bytes for the same rules")
    assert generator.compile_filter(arch) == seccomp.load(arch).program
