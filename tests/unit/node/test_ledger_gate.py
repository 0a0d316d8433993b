"""The pipeline's side of the ledger: charged before training, settled however it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rapha.node.datasets.ledger.entries import Seen
from rapha.node.gates import cost
from rapha.node.gates.ledger import Charge
from rapha.node.journal import Journal
from rapha.node.recover import seen
from rapha.spec.disclosure import Balance, Price, Spent
from rapha.spec.price import PriceContext, covert_bound_bits, ended_bits, worst_price
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import VERDICT_BITS, ReleasePlan
from rapha.spec.surface import Quanta

JOB = "ab" * 32
WORST = Price(bits=1000, evaluations=1)


def balance(entries: int) -> Balance:
    none = Spent(spent=0, cap=1)
    lines = dict.fromkeys(("bits", "epsilon", "delta", "evaluations", "cohorts", "most_used"), none)
    digest = f"{entries:064x}"
    return Balance(dataset="d", jobs=1, **lines, opt_out_version="0" * 64, head=digest, entries=entries)


@dataclass
class Data:
    """A dataset process that only has a ledger; `failing` is what it refuses."""

    failing: str = ""
    said: list[tuple[Any, ...]] = field(default_factory=list)

    def reserve(self, price: Price) -> Balance:
        return self._say("reserve", price)

    def settle(self, bits: int, released: str) -> Balance:
        return self._say("settle", bits, released)

    def _say(self, what: str, *rest: Any) -> Balance:
        if what == self.failing:
            raise Refused("node.disk_full")
        self.said.append((what, *rest))
        return balance(len(self.said) + 1)


class Parts:
    """Attributes by name, in place of a whole node."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal(tmp_path / "journal.jsonl") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "worst", lambda *_: Price(bits=70, evaluations=1))
    monkeypatch.setattr(cost, "ended", lambda *_: 25)


def charge(journal: Journal, data: Data) -> Charge:
    consented = Parts(data=data, request=Parts(price=WORST))
    return Charge(Parts(journal=journal), Parts(id=JOB), consented)  # type: ignore[arg-type]


@pytest.mark.parametrize(("scope", "left"), [("all", (1000, "all")), ("metrics", (70, "metrics"))])
def test_a_release_is_settled_in_its_scope(journal: Journal, scope: Any, left: tuple[int, str]) -> None:
    data = Data()
    with charge(journal, data) as charged:
        charged.reserve()
        charged.settle(scope)
    assert data.said == [("reserve", WORST), ("settle", *left)]
    assert seen(journal, "d") == Seen(entries=3, head=f"{3:064x}") and seen(journal, "other") is None


@pytest.mark.parametrize("error", [Refused("job.failed"), Refused("policy.review_refused"), KeyError("x")])
def test_every_other_end_is_charged_what_an_end_tells(journal: Journal, error: Exception) -> None:
    data = Data()
    with pytest.raises(type(error)), charge(journal, data) as charged:
        charged.reserve()
        raise error
    assert data.said[1:] == [("settle", 25, "nothing")]


def test_an_end_before_the_charge_settles_nothing(journal: Journal) -> None:
    data = Data(failing="reserve")
    with pytest.raises(Refused, match=r"node\.disk_full"), charge(journal, data) as charged:
        charged.reserve()
    assert data.said == [] and seen(journal, "d") is None


def test_a_release_that_failed_after_it_was_settled_stays_charged(journal: Journal) -> None:
    data = Data()
    with pytest.raises(Refused), charge(journal, data) as charged:
        charged.reserve()
        charged.settle("all")
        raise Refused("posture.seal_failed")
    assert data.said[1:] == [("settle", 1000, "all")]


def test_a_settlement_that_fails_ends_no_job_and_is_journalled(journal: Journal) -> None:
    with charge(journal, Data(failing="settle")) as charged:
        charged.reserve()
        charged.settle("all")
    assert [e.data["code"] for e in journal if e.event == "trouble"] == ["node.disk_full"]
    assert seen(journal, "d") == Seen(entries=2, head=f"{2:064x}")


PLAN = {
    "version": 1,
    "weights": {
        "file": "m.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "w", "dtype": "F32", "shape": [10], "min": -1.0, "max": 1.0}],
    },
    "trusted_metrics": ["auroc"],
    "max_bytes": 4096,
}


def test_prices_follow_from_the_plan() -> None:
    context = PriceContext(
        plan=ReleasePlan.parse(PLAN),
        max_records=100,
        bucket=10,
        wall_s=60,
        cpu_s=60,
        memory_bytes=2**28,
        quanta=Quanta(),
    )
    worst, private = worst_price(context), worst_price(context, epsilon=2.0, delta=1e-6)
    assert worst == Price(bits=covert_bound_bits(context), evaluations=1)
    assert (private.epsilon, private.delta, worst.bits - private.bits) == (2.0, 1e-6, 160)
    assert VERDICT_BITS < ended_bits(context) < private.bits
    without = PriceContext(**{**_fields(context), "plan": ReleasePlan.parse({**PLAN, "trusted_metrics": []})})
    assert worst_price(without).evaluations == 0 and worst_price(without).bits < worst.bits
    assert ended_bits(context) <= math.ceil(worst.bits - 160)


def _fields(context: PriceContext) -> dict[str, Any]:
    return {name: getattr(context, name) for name in PriceContext.__dataclass_fields__}
