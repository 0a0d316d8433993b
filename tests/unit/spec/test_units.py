from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.spec.refusals import Refused
from rapha.spec.units import format_time, parse_bytes, parse_duration, parse_time


def code(parse: Callable[[str], object], text: str) -> str:
    with pytest.raises(Refused) as caught:
        parse(text)
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("512MiB", 2**29), ("4GiB", 2**32), ("3KiB", 3072), ("100", 100)]
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


BAD_SIZES = ["", "0", "0GiB", "04GiB", "-1GiB", "+1GiB", "1.5GiB", "4GB", "4gib", "4 GiB", " 4GiB", "4GiB\n"]
BAD_SIZES += ["GiB", "1e3", "1TiB", "1_000", "1٢GiB", "4ＧiB", "9" * 16, "4GiB\x00", "0x10"]


@pytest.mark.parametrize("text", BAD_SIZES)
def test_bad_sizes(text: str) -> None:
    assert code(parse_bytes, text) == "schema.field_invalid"


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("20m", 1200), ("2h", 7200)])
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


BAD_DURATIONS = [
    "",
    "0s",
    "20",
    "m",
    "1.5h",
    "1h30m",
    "20M",
    "20 m",
    "20m\n",
    "-1s",
    "1d",
    "9" * 8 + "s",
    "1٢s",
]


@pytest.mark.parametrize("text", BAD_DURATIONS)
def test_bad_durations(text: str) -> None:
    assert code(parse_duration, text) == "schema.field_invalid"


TIMES = {
    "0": (1970, 1, 1, 0),
    "1800000000": (2027, 1, 15, 8),
    "2027-01-31T12:00:00Z": (2027, 1, 31, 12),
    "2027-01-31T12:00:00+02:00": (2027, 1, 31, 10),
}


@pytest.mark.parametrize(("text", "parts"), TIMES.items())
def test_times(text: str, parts: tuple[int, int, int, int]) -> None:
    assert parse_time(text) == datetime(*parts, tzinfo=UTC)


BAD_TIMES = [
    "",
    "now",
    "-1",
    "1.5",
    "1" * 12,
    "٢٢",
    "2027-01-31",
    "2027-01-31T12:00:00",
    "2027-02-30T00:00:00Z",
]
BAD_TIMES += [
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2027-01-31T12:00:00Z\n",
    "1\n",
    "\x00",
]


@pytest.mark.parametrize("text", BAD_TIMES)
def test_bad_times(text: str) -> None:
    assert code(parse_time, text) == "schema.field_invalid"


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(1000, 1, 1)))
def test_times_round_trip_to_the_second(moment: datetime) -> None:
    assert parse_time(format_time(moment)) == moment.replace(microsecond=0)


@given(st.text(max_size=30), st.sampled_from([parse_bytes, parse_duration, parse_time]))
def test_any_text_is_read_or_refused(text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except Refused as refused:
        assert refused.code == "schema.field_invalid"
