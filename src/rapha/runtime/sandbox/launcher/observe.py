"""Which walls hold, read from the kernel's own account of the sandbox's processes."""

from __future__ import annotations

from typing import Final

from rapha.runtime.sandbox.launcher import tree

NAMESPACES: Final = ("user", "pid", "net", "ipc", "uts", "cgroup", "mnt")
_NO_CAPABILITIES: Final = "0" * 16
_FILTERED: Final = "2"


class WallMissingError(Exception):
    """A running sandbox lacks a wall that it was asked to have."""


def walls(init: int, uid: int) -> dict[str, str]:
    """What holds for `init`, the first process inside, whose children inherit all of it.

    Returns:
        Empty while it is still being set up, or once it is gone.

    Raises:
        WallMissingError: the filter is loaded, which comes last, and something else is not as it should be.
    """
    about = tree.status(init)
    if about.get("Seccomp") != _FILTERED:
        return {}
    theirs = {kind: tree.namespace(init, kind) for kind in NAMESPACES}
    if not all(theirs.values()):
        return {}  # it is ending, and gave up its namespaces first
    apart = [kind for kind in NAMESPACES if theirs[kind] != tree.namespace("self", kind)]
    capabilities = {about.get(key, "") for key in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")}
    expected = {
        "namespaces": (",".join(apart), ",".join(NAMESPACES)),
        "no_new_privs": (about.get("NoNewPrivs", ""), "1"),
        "capabilities": (",".join(sorted(capabilities)), _NO_CAPABILITIES),
        "host uid": (" ".join(about.get("Uid", "").split()), " ".join([str(uid)] * 4)),
        "groups": (about.get("Groups", "").replace(str(uid), ""), ""),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise WallMissingError(f"{name}: found {found!r}, expected {wanted!r}")
    return {"namespaces": ",".join(apart), "no_new_privs": "yes", "capabilities": "none", "seccomp": "loaded"}
