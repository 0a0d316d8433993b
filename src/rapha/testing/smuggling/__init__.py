"""Ways to hide data in what a job releases, each with its own decoder, to try against the output guard.

`benchmarks/redteam.py` runs all of them; a hospital may run them, or more, before it trusts a plan.
"""
