"""The red team, small: nothing survives above its stated bound, and what does survive is said to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.testing.smuggling.catalogue import ENCODERS, Encoder
from rapha.testing.smuggling.learned import _bits_of_permutation, _permutation_of
from rapha.testing.smuggling.trial import RELEASES, Result, bits_of, capacity, number, run

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "redteam.py"
BY_NAME = {encoder.name: encoder for encoder in ENCODERS}
RELEASE = {release.name: release for release in RELEASES}
LET_PASS = [encoder for encoder in ENCODERS if encoder.fate != "refused"]
REFUSED = [encoder for encoder in ENCODERS if encoder.fate == "refused"]


def tried(encoder: Encoder, release: str, seed: int = 5) -> Result | None:
    attempt = encoder.make(RELEASE[release], np.random.default_rng(seed))
    return run(attempt) if attempt else None


@pytest.mark.parametrize("release", ["f32", "bf16", "int8", "int4", "int8-noise"])
@pytest.mark.parametrize("encoder", LET_PASS, ids=lambda e: e.name)
def test_nothing_survives_above_its_bound(encoder: Encoder, release: str) -> None:
    result = tried(encoder, release)
    if result is None:
        assert encoder.name == "scale-channel" and release in ("f32", "bf16")
        return
    assert result.survives <= result.bound
    assert result.refused is None
    if encoder.fate == "nothing":
        assert result.survives == 0


@pytest.mark.parametrize("encoder", REFUSED, ids=lambda e: e.name)
def test_what_no_plan_has_a_place_for_is_refused(encoder: Encoder) -> None:
    result = tried(encoder, "bf16")
    assert result and result.refused and result.refused.startswith("guard.")


@pytest.mark.parametrize(
    ("name", "release", "least"),
    [
        ("sign", "bf16", 0.9),
        ("correlated-value", "bf16", 0.9),
        ("capacity-abuse", "bf16", 0.6),
        ("transposed-model", "bf16", 0.6),
        ("permutation", "bf16", 0.7),
        ("spread-spectrum", "bf16", 0.03),
        ("sign", "int2", 0.9),
        ("sign", "bf16-noise", 0.9),
        ("all-bits", "bf16", 14.9),
        ("all-bits", "f32", 30.9),
        ("all-bits", "int8", 7.8),
        ("all-bits", "int4", 3.8),
        ("all-bits", "int2", 1.57),
        ("all-bits", "bf16-noise", 12.9),
        ("all-bits", "int8-noise", 7.8),
        ("amplitude", "f32", 4.9),
        ("amplitude", "bf16-noise", 4),
        ("amplitude", "int8-noise", 4),
    ],
)
def test_signs_and_learned_payloads_do_survive(name: str, release: str, least: float) -> None:
    """What the disclosure report says of them is true, and the stated bound is not far above the truth."""
    result = tried(BY_NAME[name], release)
    assert result and least < result.survives <= result.bound


@pytest.mark.parametrize("depth", [4, 8, 16])
def test_low_bits_do_not_survive_bf16(depth: int) -> None:
    kept, gone = tried(BY_NAME[f"low-bit.{depth}"], "f32"), tried(BY_NAME[f"low-bit.{depth}"], "bf16")
    assert kept and kept.survives == depth
    assert gone and gone.survives == 0


def test_a_model_that_carries_a_payload_still_works() -> None:
    result = tried(BY_NAME["capacity-abuse"], "bf16")
    assert result and result.use.startswith("accuracy 1.00")


def test_the_catalogue_has_each_name_once_and_says_what_it_does() -> None:
    assert len(BY_NAME) == len(ENCODERS)
    assert all(encoder.about.endswith(".") for encoder in ENCODERS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_permutation_is_a_number(seed: int) -> None:
    sent = np.random.default_rng(seed).integers(0, 2, int(math.log2(math.factorial(256))), dtype=np.uint8)
    found = _permutation_of(sent)
    assert sorted(found.tolist()) == list(range(256))
    assert (_bits_of_permutation(found, sent.size) == sent).all()


@given(st.lists(st.integers(0, 2**23 - 1), min_size=1, max_size=20))
def test_numbers_and_their_bits(numbers: list[int]) -> None:
    assert number(bits_of(np.array(numbers), 23)).tolist() == numbers


@pytest.mark.parametrize(
    ("errors", "expected"),
    [(0, 10_000), (10_000, 10_000), (5_000, 0), (1_100, 10_000 * (1 - 0.4999))],
)
def test_capacity_is_shannons(errors: int, expected: float) -> None:
    sent = np.zeros((1, 10_000), dtype=np.uint8)
    got = sent.copy()
    got[0, :errors] = 1
    assert capacity([(sent, got)]) == pytest.approx(expected, abs=10)


def test_places_that_were_not_sent_are_no_answer() -> None:
    with pytest.raises(ValueError, match="were read"):
        capacity([(np.zeros((1, 4), np.uint8), np.zeros((2, 4), np.uint8))])


def _benchmark(only: str, page: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--only", only, "--html", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_benchmark_says_what_survives(tmp_path: Path) -> None:
    ran = _benchmark("sign", tmp_path / "page.html")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (ran.returncode, [line["name"] for line in lines]) == (0, [f"redteam.sign.{r}" for r in RELEASE])
    assert all(line["ours"] <= line["theirs"] and line["unit"] == "bits/parameter" for line in lines)
    assert (tmp_path / "page.html").read_text().count("<circle") == 2 * len(RELEASES)
    assert "sign" in ran.stderr


def test_a_benchmark_of_nothing_is_no_pass(tmp_path: Path) -> None:
    assert _benchmark("nonesuch", tmp_path / "page.html").returncode == 1
