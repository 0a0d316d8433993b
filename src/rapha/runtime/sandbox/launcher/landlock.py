"""Landlock (landlock(7)): which of it this kernel has, and domains that a process puts itself into.

A domain only ever narrows what its process may do, holds for all that it starts, and can't be left.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import system

# One number on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_QUIET_UNTIL_EXEC: Final = 1
"""LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF: our own self-test is no news for the host's audit log."""
_QUIET_ABI: Final = 7
_KNOWN_ABI: Final = 7
"""The newest whose rights are listed here; of a newer kernel, these are what is in force."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))

_PATHS: Final = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
_TCP: Final = ((4, 0x3),)  # bind, connect
_SCOPES: Final = ((6, 0x3),)  # abstract unix sockets, signals
_FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""All that a rule on something other than a directory may name."""

READ: Final = EXECUTE | READ_FILE | READ_DIR
WRITE: Final = (
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | REFER
    | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
)  # fmt: skip
"""Without devices: neither to make nor to command."""


class Rights(NamedTuple):
    """What a domain takes away unless a rule gives it back; masks, 0 for nothing."""

    paths: int
    tcp: int
    scopes: int

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that are in it, in the order of the fields."""
        return tuple(name for name, mask in zip(self._fields, self, strict=True) if mask)


class _Ruleset(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("paths", "tcp", "scopes"))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The kernel's ABI as far as it is known here, 0 where there is no Landlock or it is switched off.

    Raises:
        OSError: the kernel may have it, and does not let this process ask.
    """
    try:
        found = system.call(
            _CREATE_RULESET, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION)
        )
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise
    return min(found, _KNOWN_ABI)


def rights(version: int) -> Rights:
    """Every right that ABI `version` has."""
    paths, tcp, scopes = (
        sum(mask for since, mask in table if since <= version) for table in (_PATHS, _TCP, _SCOPES)
    )
    return Rights(paths, tcp, scopes)


def describe(version: int) -> str:
    """The wall as a receipt tells it; `none` for 0."""
    return f"abi {version} ({', '.join(rights(version).names)})" if version else "none"


def restrict(version: int, handled: Rights, rules: Iterable[tuple[str, int]] = ()) -> None:
    """Put the calling thread, which must be the only one, into a domain.

    Args:
        version: the ABI that `handled` was made for, at least 1.
        handled: what is denied, not all 0. A domain without paths leaves mounting possible.
        rules: a path and the rights that it and all beneath it keep. Rights that the ABI does not have, or
            that make no sense for a file, are left out.

    Raises:
        OSError: a path is absent, or the kernel refuses.
    """
    system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
    attributes = _Ruleset(*handled)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    ruleset = system.call(
        _CREATE_RULESET, "landlock ruleset", ctypes.byref(attributes), size, ctypes.c_uint(0)
    )
    try:
        for path, kept in rules:
            _allow(ruleset, path, kept & handled.paths)
        flags = _QUIET_UNTIL_EXEC if version >= _QUIET_ABI else 0
        system.call(_RESTRICT_SELF, "landlock domain", ctypes.c_int(ruleset), ctypes.c_uint(flags))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, kept: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112  pathlib takes 10 ms to import
            kept &= _FILE_RIGHTS
        rule = _PathBeneath(kept, fd)
        arguments = (ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), ctypes.byref(rule))
        system.call(_ADD_RULE, path, *arguments, ctypes.c_uint(0))
    finally:
        os.close(fd)
