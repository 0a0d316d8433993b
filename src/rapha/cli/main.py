"""`rapha`: one table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Final

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, say
from rapha.spec.refusals import Refused

COMMANDS: Final = {
    "demo": ("rapha.cli.demo", "Run the main job end to end on real data, on this machine."),
    "verify": ("rapha.cli.verify", "Verify a bundle offline, against a trust file."),
    "job": ("rapha.cli.job", "Write, check, sign, submit and fetch training jobs."),
    "node": ("rapha.cli.node", "Run a hospital node; approve jobs and releases."),
    "coordinator": ("rapha.cli.coordinator", "Run the control plane."),
    "scan": ("rapha.cli.scan", "Scan a job's image."),
    "policy": ("rapha.cli.policy", "Test, check and explain admission policy."),
    "sandbox": ("rapha.cli.sandbox", "Run a command under exactly the trainer's walls."),
    "guard": ("rapha.cli.guard", "Inspect outputs against a release plan."),
}


def main() -> None:
    """Run one command, and turn a refusal into its code, its fix and the contract's exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run `rapha ARGUMENTS` and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        emit(_help())
        return OK if arguments else WRONG_CALL
    if arguments[0] == "--version":
        emit(f"rapha {version('rapha')}")
        return OK
    name, *rest = arguments
    if name not in COMMANDS:
        say(f"there is no command {name!r}\n\n{_help()}")
        return WRONG_CALL
    app = importlib.import_module(COMMANDS[name][0]).app
    try:
        app(args=rest, prog_name=f"rapha {name}")
    except Refused as refused:
        say(f"refused: {refused.code}: {refused.detail}\nfix: {refused.fix}")
        return UNKNOWN if refused.code.startswith("node.") else NO
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else (NO if leaving.code else OK)
    return OK


def _help() -> str:
    lines = ["Rapha: compute moves, patient data stays.", "", "usage: rapha COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "`rapha COMMAND --help` explains each."])
