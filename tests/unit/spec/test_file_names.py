from __future__ import annotations

import pytest

from rapha.spec.refusals import Refused
from rapha.spec.reported import check_file
from rapha.spec.sections import Released


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        *((name, True) for name in ("a.bin", "_a.bin", "0-_.bin", "a.b.bin", "x" * 60 + ".bin")),
        *((name, False) for name in (".a.bin", "a..bin", "a/b.bin", "-a.bin", "x" * 61 + ".bin", "a.bin\n")),
    ],
)
def test_a_plan_and_a_section_accept_the_same_names(name: str, fine: bool) -> None:
    section = {"name": name, "sha256": "0" * 64, "bytes": 1}
    if fine:
        check_file(name, ".bin")
        Released.parse(section)
        return
    with pytest.raises(Refused):
        check_file(name, ".bin")
    with pytest.raises(Refused):
        Released.parse(section)
