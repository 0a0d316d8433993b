from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.sandbox.drivers import DRIVERS, driver
from rapha.runtime.sandbox.interface import Limits, Mount, Spec
from rapha.spec.refusals import Refused

BAD_DESTINATIONS = {
    "relative": "app",
    "empty": "",
    "root": "/",
    "parent": "/app/../etc",
    "dot": "/app/./x",
    "trailing slash": "/app/",
    "double slash": "//app",
    "inner double slash": "/app//x",
    "NUL": "/app\0x",
    "proc": "/proc",
    "under proc": "/proc/self",
    "dev": "/dev/null",
    "tmp": "/tmp/x",
    "outputs": "/rapha/out",
    "over outputs": "/rapha",
    "under outputs": "/rapha/out/x",
}


@pytest.mark.parametrize("dest", BAD_DESTINATIONS.values(), ids=BAD_DESTINATIONS)
def test_a_mount_where_the_sandbox_has_its_own_is_refused(dest: str) -> None:
    with pytest.raises(Refused) as refused:
        Mount(Path("/usr"), dest)
    assert refused.value.code == "node.config"


@given(st.text(alphabet="/.ab", max_size=12))
def test_accepted_destinations_are_absolute_and_normal(dest: str) -> None:
    try:
        Mount(None, dest)
    except Refused:
        return
    parts = dest.split("/")
    assert parts[0] == ""
    assert all(part not in {"", ".", ".."} for part in parts[1:])


@pytest.mark.parametrize("name", Limits.__slots__)
@pytest.mark.parametrize("value", [0, -1, 1 << 53, float("nan"), float("inf")])
def test_a_limit_that_limits_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(Refused) as refused:
        Limits(**{name: value})  # type: ignore[arg-type]
    assert refused.value.code == "node.config"


BAD_SPECS: dict[str, dict[str, Any]] = {
    "no command": {"argv": ()},
    "empty command": {"argv": ("",)},
    "NUL in argument": {"argv": ("python3", "a\0b")},
    "NUL in value": {"env": {"A": "\0"}},
    "name with equals": {"env": {"A=B": "1"}},
    "empty name": {"env": {"": "1"}},
    "name with newline": {"env": {"A\n": "1"}},
    "relative cwd": {"cwd": "tmp"},
    "NUL in cwd": {"cwd": "/\0"},
}


@pytest.mark.parametrize("change", BAD_SPECS.values(), ids=BAD_SPECS)
def test_what_no_process_can_be_given_is_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"argv": ("x",), "mounts": (), "env": {}, "cwd": "/tmp", "limits": Limits()}
    with pytest.raises(Refused) as refused:
        Spec(**fields | change)
    assert refused.value.code == "schema.field_invalid"


def test_an_unknown_driver_is_refused_and_names_those_there_are() -> None:
    with pytest.raises(Refused) as refused:
        driver("chroot")
    assert refused.value.code == "node.sandbox_unavailable"
    assert all(name in refused.value.detail for name in DRIVERS)


def test_drivers_are_known_by_their_own_name() -> None:
    assert [driver(name).name for name in DRIVERS] == list(DRIVERS)
