"""A node that is killed at a moment of one's choice, for tests of what a crash leaves."""

from __future__ import annotations

from typing import Final

KILLER: Final = """
import os, signal, sys
from rapha.node.journal import Journal
append = Journal.append
def point(event, data):
    return "/".join([event, *[str(data[k]) for k in ("gate", "verdict") if k in data]])
def dying(self, event, job="", **data):
    entry = append(self, event, job, **data)
    if os.environ.get("KILL_AT") == point(event, data):
        os.kill(os.getpid(), signal.SIGKILL)
    return entry
Journal.append = dying
from rapha.cli.main import run
sys.exit(run(["node", "serve", *sys.argv[1:]]))
"""
"""The real node, which dies right after it wrote one journal entry: the only thing that is
changed. `KILL_AT` names it: `accepted`, `gate/train/started`."""
