"""From the launcher to gVisor: the OCI spec, and the fence of bubblewrap's that `runsc` runs in.

The fence is the same for root and for everyone else: `runsc` is root in a user namespace that maps nothing
of the host's, in namespaces of its own, and sees its program, the spec and the staged root. The init of its
pid namespace dies with the launcher, and with it every process of gVisor's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from rapha.runtime.sandbox.launcher.order import Order

if TYPE_CHECKING:
    from rapha.runtime.sandbox.launcher.stage import Stage

LOG_FD: Final = 14
"""Where `runsc` says what went wrong, out of the job's reach."""
_PROGRAM, _BUNDLE, _STATE, _ROOT = "/rapha/runsc", "/rapha/bundle", "/rapha/state", "/rapha/root"
_STATE_BYTES: Final = str(1 << 20)
_DEVICES: Final = ("null", "random", "urandom")
_STACK_BYTES: Final = 8 << 20


def command(order: Order) -> list[str]:
    """What bubblewrap starts."""
    flags = ["--root", _STATE, "--log-fd", str(LOG_FD), *order.runsc[1:]]
    return [_PROGRAM, *flags, "run", "--bundle", _BUNDLE, "job"]


def fence(stage: Stage) -> list[str]:
    """bubblewrap's options; it is root in a user namespace already, and keeps its capabilities there."""
    arguments = [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup")]
    arguments += ["--hostname", "rapha", "--new-session", "--die-with-parent", "--clearenv"]
    arguments += ["--ro-bind", stage.runsc, _PROGRAM, "--ro-bind", stage.bundle, _BUNDLE]
    arguments += ["--ro-bind", stage.root, _ROOT]
    for staged, dest in ((stage.tmp, "tmp"), (stage.shm, "dev/shm"), (stage.out, "rapha/out")):
        arguments += ["--bind", staged, f"{_ROOT}/{dest}"]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for folder in (_STATE, "/tmp"):  # noqa: S108  where gVisor builds the empty root of its own processes
        arguments += ["--size", _STATE_BYTES, "--tmpfs", folder]
    return [*arguments, "--proc", "/proc", "--remount-ro", "/"]


def config(order: Order, inside: int) -> bytes:
    """The OCI runtime spec (1.0.2) of the one container, as JSON; `inside` is the job's uid and gid."""
    process: dict[str, Any] = {
        "user": {"uid": inside, "gid": inside},
        "args": order.argv,
        "env": [f"{name}={value}" for name, value in order.env.items()],
        "cwd": order.cwd,
        "capabilities": {},
        "noNewPrivileges": True,
        "rlimits": [{"type": kind, "soft": value, "hard": value} for kind, value in _limits(order)],
    }
    spaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    spec = {
        "ociVersion": "1.0.2",
        "process": process,
        # Writable for gVisor, since one connection then serves the root and the three folders that are; what
        # is not for the job to write is read-only to gVisor's own processes, by the kernel.
        "root": {"path": _ROOT, "readonly": False},
        "hostname": "rapha",
        "mounts": _mounts(),
        "linux": {"namespaces": spaces, "seccomp": json.loads(order.seccomp)},
    }
    return json.dumps(spec, ensure_ascii=True).encode()


def _mounts() -> list[dict[str, Any]]:
    """/sys tells of the host's processors: it is hidden. gVisor's own /tmp and /dev/shm have no bound."""
    kept = [("/proc", "proc", []), ("/sys", "tmpfs", ["ro"])]
    mounts = [{"destination": d, "type": t, "source": t, "options": o} for d, t, o in kept]
    for folder in ("/tmp", "/dev/shm"):  # noqa: S108
        source = f"{_ROOT}{folder}"
        mounts.append({"destination": folder, "type": "bind", "source": source, "options": ["rw"]})
    return mounts


def _limits(order: Order) -> list[tuple[str, int]]:
    return [
        ("RLIMIT_CPU", order.cpu_s + 1),
        ("RLIMIT_NOFILE", order.open_files),
        ("RLIMIT_NPROC", order.processes),
        ("RLIMIT_FSIZE", max(order.out_bytes, order.tmp_bytes)),
        ("RLIMIT_STACK", _STACK_BYTES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 64 << 10),
    ]
