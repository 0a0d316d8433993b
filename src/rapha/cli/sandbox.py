"""`rapha sandbox`: any command under the trainer's walls, so that IT can attack them themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from rapha.cli import sandbox_gap, sandbox_probe
from rapha.cli.exits import UNKNOWN, say
from rapha.cli.sandbox_driver import Driver
from rapha.runtime.sandbox import drivers
from rapha.runtime.sandbox.interface import EXIT_NOT_BUILT, Ending, Limits, Mount, Outcome, Sandbox, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed
from rapha.runtime.sandbox.start import unavailable

app = typer.Typer(help="Run commands under the walls that a job gets.", no_args_is_help=True)

_MIB: Final = 1 << 20
_MAX_MIB: Final = 1 << 24

app.command()(sandbox_probe.probe)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="CMD...", help="After --; `python3` has the runtime.")
    ],
    driver: Annotated[Driver, typer.Option(help="Which walls.")] = Driver.bubblewrap,
    airgap: Annotated[bool, typer.Option("--airgap", help="Also sever the WAN interface.")] = False,
    wan: Annotated[
        str | None, typer.Option(help="With --airgap: the interface; else that of the default route.")
    ] = None,
    airgap_socket: Annotated[
        Path | None,
        typer.Option(help="With --airgap: a helper that runs already; else root starts one."),
    ] = None,
    folder_in: Annotated[
        Path | None,
        typer.Option("--in", metavar="DIR", help="Read-only at /rapha/in.", file_okay=False, exists=True),
    ] = None,
    folder_out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Gets what /rapha/out held; made if absent, else empty."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e7, help="Wall clock, seconds.")] = 60.0,
    memory_mb: Annotated[
        int, typer.Option(min=16, max=_MAX_MIB, help="All processes and tmpfs, MiB.")
    ] = 2048,
    out_mb: Annotated[int, typer.Option(min=1, max=_MAX_MIB, help="Size of /rapha/out, MiB.")] = 64,
) -> None:
    """Run CMD in the sandbox.

    Exits with CMD's code; 124 time, 137 memory, 127 no such command, 3 no sandbox.
    """
    if not command[0]:
        raise typer.BadParameter("the command is empty")
    if not airgap and (wan or airgap_socket):
        raise typer.BadParameter("--wan and --airgap-socket go with --airgap")
    limits = Limits(
        wall_s=timeout,
        cpu_s=max(1, int(timeout * len(os.sched_getaffinity(0)))),
        memory_bytes=memory_mb * _MIB,
        out_bytes=out_mb * _MIB,
        tmp_bytes=max(1, memory_mb // 4) * _MIB,
    )
    sandbox, out = drivers.driver(driver.value), _ready(folder_out)
    with sandbox_gap.severed(airgap, wan, airgap_socket) as hold:
        code = _tell(_run(sandbox, tuple(command), folder_in, out, limits, hold))
    raise typer.Exit(code)


def _ready(folder: Path | None) -> Path | None:
    """`--out`, made if absent; wrong call if something is in it."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise typer.BadParameter(f"--out {folder} is not empty")
    except OSError as error:
        raise typer.BadParameter(f"--out {folder}: {error.strerror}") from None
    return folder


def _run(
    sandbox: Sandbox,
    command: tuple[str, ...],
    folder_in: Path | None,
    folder_out: Path | None,
    limits: Limits,
    hold: int | None,
) -> Outcome:
    runtime = PythonRuntime.discover(installed())
    mounts = (*runtime.mounts, *([Mount(folder_in, "/rapha/in")] if folder_in else []))
    spec = Spec(
        command,
        mounts,
        runtime.env,
        "/tmp",  # noqa: S108  inside
        limits,
        out=folder_out,
        output_to_terminal=True,
        hold=hold,
    )
    running = sandbox.start(spec)
    try:
        return running.wait()
    except KeyboardInterrupt:
        running.kill()
        return running.wait()


def _tell(outcome: Outcome) -> int:
    """Say on stderr what the exit code alone does not, and return it."""
    if outcome.ending is not Ending.exited:
        say(f"sandbox: {outcome.ending.value.replace('_', ' ')}")
    for anomaly in outcome.anomalies:
        say(f"sandbox: not copied: {anomaly}")
    if outcome.ending is Ending.failed_to_start and outcome.exit_code == EXIT_NOT_BUILT:
        say(f"sandbox: {unavailable(outcome)}")
        return UNKNOWN
    return outcome.exit_code
