"""What every test obeys: peers are there or named as missing, and long campaigns run when asked for.

`@pytest.mark.peer("dcmdump")` says which programs outside the Python environment a test talks to. One that
is missing skips the test by name, or fails it under RAPHA_REQUIRE_PEERS=1, so that CI can't pass by skipping.
"""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail what can't run here."""
    if item.get_closest_marker("slow") and os.environ.get("RAPHA_CAMPAIGN") != "1":
        pytest.skip("a long campaign: run `make campaign`")
    marks = list(item.iter_markers("peer"))
    if any(not mark.args for mark in marks):
        pytest.fail("the mark `peer` names the programs that it needs", pytrace=False)
    missing = sorted({name for mark in marks for name in mark.args if shutil.which(name) is None})
    if not missing:
        return
    reason = f"peer not installed: {', '.join(missing)} (`make peers`)"
    if os.environ.get("RAPHA_REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
