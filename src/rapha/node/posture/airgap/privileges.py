"""Give up everything but CAP_NET_ADMIN (capabilities(7), prctl(2))."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path
from typing import Final

from rapha.spec.refusals import Refused

_NET_ADMIN: Final = 12
_ALL: Final = 64
_VERSION_3: Final = 0x20080522
_KEEPCAPS, _BOUNDING_DROP, _NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_CLEAR = 8, 24, 38, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(run_as: int | None) -> None:
    """Keep CAP_NET_ADMIN alone, become `run_as` if given, gain nothing ever again, and see that it is so.

    Raises:
        Refused: `posture.seal_failed` if the process has no CAP_NET_ADMIN or kept more.
    """
    for capability in range(_ALL):
        if capability != _NET_ADMIN:
            # EINVAL ends the list of known ones; EPERM where a service manager bounded us already.
            _libc.prctl(_BOUNDING_DROP, capability, 0, 0, 0)
    _must(_libc.prctl(_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0), "clear ambient capabilities")
    if run_as is not None:
        _become(run_as)
    keep = 1 << _NET_ADMIN
    halves = (_Half * 2)(_Half(keep, keep, 0), _Half(0, 0, 0))
    _must(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), halves), "keep CAP_NET_ADMIN")
    _must(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "renounce new privileges")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _verify(keep, run_as)


def _become(uid: int) -> None:
    _must(_libc.prctl(_KEEPCAPS, 1, 0, 0, 0), "keep capabilities across the change of user")
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise Refused("posture.seal_failed", f"become user {uid}: {error.strerror}") from None


def _verify(keep: int, run_as: int | None) -> None:
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    sets = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")}
    wanted = {"CapPrm": keep, "CapEff": keep, "CapInh": 0, "CapAmb": 0}
    if sets != wanted or int(status["NoNewPrivs"]) != 1:
        raise Refused("posture.seal_failed", "the helper did not get rid of its privileges")
    if run_as is not None and set(status["Uid"].split()) != {str(run_as)}:
        raise Refused("posture.seal_failed", "the helper did not change its user")


def _must(result: int, what: str) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise Refused("posture.seal_failed", f"the helper could not {what}: {reason}")
