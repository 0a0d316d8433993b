"""Gate 4: whether policy admits a job.

`bundle` reads rule sets, `interface` is the port to an engine, `regopy_engine` the adapter in the box,
`evaluate` the AND over every set, `explain` the answer in words, and `suite` runs a set's own tests.
"""
