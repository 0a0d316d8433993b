"""The seccomp filters, compiled by `tools/gen_seccomp.py`; a test compiles them again and compares."""
