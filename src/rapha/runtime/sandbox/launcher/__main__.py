"""`python -m rapha.runtime.sandbox.launcher`: an order on stdin, a report on the control socket."""

from __future__ import annotations

import os
import signal
import sys

from rapha.runtime.sandbox.launcher import cgroup, collect, enter, order, stage, supervise, system, tree


def main() -> int:
    """Run one order. Exits 1 if the process that gave it is gone."""
    # The node's thread that started us lives until we report, so this fires when the node dies, not before.
    system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
    told = order.read_order(sys.stdin.buffer.read())
    if os.getppid() != told.parent:
        return 1
    _send(told.control, order.encode(_carry_out(told)))
    return 0


def _carry_out(told: order.Order) -> order.Report:
    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    group = cgroup.make(told.memory_bytes, enter.tasks(told))
    try:
        if not tree.can_walk():
            raise stage.StageError("this kernel does not list children in /proc (CONFIG_PROC_CHILDREN)")
        staged = stage.build(told)
        report = supervise.Supervisor(told, staged, group).run()
    except stage.StageError as error:
        return order.Report("failed_to_start", 125, 0.0, 0.0, 0, {}, [], [], str(error))
    finally:
        if group:
            group.remove()
    if report.ending != "exited" or told.out < 0:
        return report
    try:
        outputs, anomalies = collect.collect(staged.out, told.out, told.max_files, told.out_bytes)
    except collect.NoRoomError as error:
        return report._replace(no_room=str(error))
    return report._replace(outputs=outputs, anomalies=anomalies)


def _send(control: int, data: bytes) -> None:
    while data:
        data = data[os.write(control, data) :]


if __name__ == "__main__":
    sys.exit(main())
