"""Whether decoded records could be written to disk behind the node's back: swap, and core files.

Encrypted shards and anonymous memory keep records off the disk only while the kernel doesn't put that memory
there itself. A node without a confidential VM can say no more than this: what the host's own administrator
does to its memory is out of reach.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final

from rapha.runtime.broker.memory import active_swaps, lock_all, may_lock
from rapha.spec.base import Profile
from rapha.spec.refusals import Refused

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4


def check_swap(profile: Profile) -> str:
    """What holds records out of swap, in words.

    Raises:
        Refused: `node.swap_on` in production where the host swaps and processes may not lock their memory;
            in a demo those words are the warning.
    """
    swaps = active_swaps()
    if not swaps:
        return "the host does not swap"
    if may_lock():
        return f"the host swaps; records are locked in memory ({len(swaps)} swap areas)"
    if profile == "production":
        raise Refused("node.swap_on", f"the host swaps to {swaps[0]}, and the node may not lock its memory")
    return f"WARNING: the host swaps to {swaps[0]}: records may be written there; production refuses"


def keep_out_of_swap() -> None:
    """Lock this process's memory, now and later, where the host swaps and that is allowed.

    Raises:
        OSError: it is allowed and doesn't work.
    """
    if active_swaps() and may_lock():
        lock_all()


def harden() -> None:
    """Die with the parent, never dump a core, never be attached to, stay out of swap.

    Raises:
        OSError: the kernel refused; call this before anything is read.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, *(ctypes.c_ulong(v) for v in (int(value), 0, 0, 0))):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl")
    keep_out_of_swap()
