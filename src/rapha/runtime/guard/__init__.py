"""The output guard: default-deny, and it rebuilds every byte that leaves.

Checks carry the numbers of the design: 1 files, 2 format, 3 values, 4 transform, 5 rebuild, 6 reported
metrics, 7 tripwires. `inspection.inspect` runs them in this process, `process.run_in_child` in a plain
child, `confined.run_in_process` in the sandbox: what a node does.
"""
