"""Compile the sandbox's seccomp allow-list to BPF, one file an architecture, and to gVisor's OCI section;
and that of the workers that parse stored images, to BPF.

    python tools/gen_seccomp.py [--out DIR] [--workers DIR]

libseccomp does the compiling (through `pyseccomp`); the nodes load the committed bytes and need neither.
A system call that no table below names gets EPERM. Rules compare the 32 bits that the kernel reads: a
64-bit compare can be evaded by setting bits that the kernel ignores (CVE-2019-10063).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import struct
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import pyseccomp as seccomp

FILTERS: Final = Path(__file__).parent.parent / "src/rapha/runtime/sandbox/filters"
WORKERS: Final = Path(__file__).parent.parent / "src/rapha/node/sources/workers"
ARCHES: Final = {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64}
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOWED: Final = """
access alarm arch_prctl brk chdir chmod clock_getres clock_gettime clock_nanosleep close close_range
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fstat fstatfs fsync ftruncate futex futex_waitv futimesat get_mempolicy
get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1
inotify_rm_watch kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lgetxattr link
linkat listxattr llistxattr lremovexattr lseek lstat
madvise membarrier mincore mkdir mkdirat mlock mlock2 mlockall mprotect mremap msync munlock munlockall
munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
pkey_free pkey_mprotect poll ppoll pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2
read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setitimer setpgid
setrlimit setsid shutdown sigaltstack signalfd signalfd4 stat statfs statx
symlink symlinkat sync_file_range sysinfo tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask
uname unlink unlinkat utime utimensat utimes vfork wait4 waitid write writev
accept accept4 bind connect listen
""".split()  # noqa: SIM905  a table to read, not a list of quotes
"""Names that one of the architectures lacks are left out of its filter.

`accept` to `listen` reach only AF_UNIX sockets, since `socket` makes no other; abstract names end at the
network namespace and path names at the mount namespace.

With the three of Landlock a process can only take rights from itself: the sandbox's own last step does, and a
job may.

Left out on purpose, beside what threatens the kernel: `memfd_create`, `memfd_secret` and System V shared
memory, because memory that no process maps is memory that no supervisor can count. The same for
`vmsplice` and its kin: one page in a pipe can pin a whole huge page. And for `setxattr` and its kin: the
kernel bounds the attributes of no memfd, and the broker's is one that the job can name.
"""

AF_UNIX: Final = 1
LOW_WORD: Final = 0xFFFFFFFF
CLONE_NEW: Final = 0x7E020000
"""NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME exists only in clone3 and unshare."""
MAP_TYPE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_HUGETLB = 0x0F, 0x02, 0x20, 0x40000
S_IFMT, S_IFIFO, S_IFREG = 0o170000, 0o010000, 0o100000
PERSONALITY_QUERY: Final = 0xFFFFFFFF
IOCTLS: Final = {
    "TCGETS": 0x5401,
    "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FIOASYNC": 0x5452,
}
"""What `isatty`, non-blocking and close-on-exec need; so TIOCSTI and TIOCLINUX are not among them."""
PRCTLS: Final = {
    "PR_SET_PDEATHSIG": 1,
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,
    "PR_CAPBSET_READ": 23,
    "PR_GET_TIMERSLACK": 30,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,
    "PR_GET_THP_DISABLE": 42,
}
SOCKET_OPTIONS: Final = {
    "SO_REUSEADDR": 2,
    "SO_RCVBUF": 8,
    "SO_LINGER": 13,
    "SO_REUSEPORT": 15,
    "SO_PASSCRED": 16,
    "SO_RCVTIMEO": 20,
    "SO_SNDTIMEO": 21,
}
"""Without SO_SNDBUF: a socket then holds what the host's default says, which a supervisor can reckon with."""
FIRST_UNKNOWN: Final = 452
"""Calls newer than this list get ENOSYS, so that a newer C library falls back instead of failing."""
X32_BIT: Final = 0x40000000
GVISOR_NAMES: Final = ("pselect",)
"""gVisor's own names where they are not the kernel's: a name that it doesn't know it passes over in silence.
This one is `pselect6`."""


class Condition(NamedTuple):
    """`call` is allowed where its argument at `position`, masked, is `value`."""

    call: str
    position: int
    mask: int
    value: int


CONDITIONS: Final = (
    *(Condition(call, 0, LOW_WORD, AF_UNIX) for call in ("socket", "socketpair")),
    Condition("clone", 0, CLONE_NEW, 0),
    Condition("personality", 0, LOW_WORD, PERSONALITY_QUERY),
    *(Condition("ioctl", 1, LOW_WORD, command) for command in IOCTLS.values()),
    *(Condition("prctl", 0, LOW_WORD, option) for option in PRCTLS.values()),
    *(Condition("setsockopt", 2, LOW_WORD, option) for option in SOCKET_OPTIONS.values()),
    # Shared anonymous and huge pages can be held without being resident anywhere: private or a file only.
    Condition("mmap", 3, MAP_ANONYMOUS, 0),
    Condition("mmap", 3, MAP_TYPE | MAP_HUGETLB, MAP_PRIVATE),
    *(Condition("mknodat", 2, S_IFMT, kind) for kind in (S_IFIFO, S_IFREG)),
)
UNKNOWN: Final = ("clone3",)
"""Its flags lie behind a pointer, where no filter can look; on ENOSYS the C library uses clone."""

WORKER_ALLOWED: Final = """
access arch_prctl brk clock_getres clock_gettime clock_nanosleep close exit exit_group faccessat faccessat2
fadvise64 fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpid getppid getrandom getrlimit
getrusage gettid gettimeofday getuid lseek lstat madvise membarrier mmap mprotect mremap munmap nanosleep
newfstatat open openat openat2 pread64 preadv preadv2 read readahead readlink readlinkat readv
restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield sigaltstack stat
statfs statx sysinfo time times uname write writev
""".split()  # noqa: SIM905
"""What is left to a worker once it has imported what it needs: memory, reading files, its one socket by
`read` and `write`. No socket call, no other process, no thread, no signal to anyone, no limit raised."""
F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC = 1, 2, 3, 1030
WORKER_CONDITIONS: Final = tuple(
    Condition("fcntl", 1, LOW_WORD, command) for command in (F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC)
)
"""F_SETOWN would have the kernel send signals to others."""


def _conditional(rules: seccomp.SyscallFilter, conditions: Iterable[Condition]) -> None:
    for call, position, mask, value in conditions:
        rules.add_rule(seccomp.ALLOW, call, seccomp.Arg(position, seccomp.MASKED_EQ, mask, value))
    for call in UNKNOWN:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), call)


def oci_section() -> str:
    """`linux.seccomp` of an OCI runtime spec (1.0.2), with the same rules.

    gVisor gives EPERM for each SCMP_ACT_ERRNO, whatever number it is told. SCMP_ACT_TRACE without a tracer,
    which the rules allow nobody to be, is ENOSYS (seccomp(2)).
    """
    names = sorted({*ALLOWED, *GVISOR_NAMES})
    rules: list[dict[str, object]] = [{"names": names, "action": "SCMP_ACT_ALLOW"}]
    for call, position, mask, value in CONDITIONS:
        compare = {"index": position, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": [call], "action": "SCMP_ACT_ALLOW", "args": [compare]})
    rules.append({"names": list(UNKNOWN), "action": "SCMP_ACT_TRACE"})
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}, indent=1) + "\n"


def _newer_calls(arch: str) -> bytes:
    """BPF to put in front: of this ABI and past the list is ENOSYS; libseccomp can't say it by number.

    Jumps are relative, so what follows stays as it was compiled.
    """
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 4, AUDIT_ARCH[arch]),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, 2, 0, X32_BIT),
        (at_least, 0, 1, FIRST_UNKNOWN),
        (answer, 0, 0, 0x00050000 | errno.ENOSYS),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def compile_filter(arch: str) -> bytes:
    """BPF for a job on `arch` (`x86_64` or `aarch64`); calls of any other ABI kill the process.

    Raises:
        KeyError: `arch` is not one of `ARCHES`.
        OSError: libseccomp refuses a rule.
    """
    return _compile(arch, ALLOWED, CONDITIONS)


def compile_worker(arch: str) -> bytes:
    """As `compile_filter`, for a worker."""
    return _compile(arch, WORKER_ALLOWED, WORKER_CONDITIONS)


def _compile(arch: str, allowed: Iterable[str], conditions: Iterable[Condition]) -> bytes:
    wanted = ARCHES[arch]
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    if seccomp.system_arch() != wanted:
        rules.add_arch(wanted)
        rules.remove_arch(seccomp.system_arch())
    for call in allowed:
        if seccomp.resolve_syscall(wanted, call) >= 0:
            rules.add_rule(seccomp.ALLOW, call)
    _conditional(rules, conditions)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return _newer_calls(arch) + file.read()


def compiler_version() -> str:
    """The version of the libseccomp in use; another one may emit other bytes for the same rules."""

    class Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))

    ask = ctypes.CDLL("libseccomp.so.2").seccomp_version
    ask.restype = ctypes.POINTER(Version)
    version = ask().contents
    return f"{version.major}.{version.minor}.{version.micro}"


def main() -> int:
    """Write every filter under `--out` and `--workers`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=FILTERS)
    parser.add_argument("--workers", type=Path, default=WORKERS)
    asked = parser.parse_args()
    out: Path = asked.out
    for arch in ARCHES:
        (out / f"{arch}.bpf").write_bytes(compile_filter(arch))
        (asked.workers / f"{arch}.bpf").write_bytes(compile_worker(arch))
        sys.stderr.write(f"{out / arch}.bpf, {asked.workers / arch}.bpf\n")
    (out / "oci.json").write_text(oci_section())
    (out / "libseccomp.version").write_text(compiler_version() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
