"""The ledger as a page for the people of the hospital: self-contained, without script, naming no patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rapha.node.datasets.ledger import plots
from rapha.node.datasets.ledger.messages import Line, Shown
from rapha.runtime import pages
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Spent

RELEASED: Final = {
    "all": "all",
    "metrics": "metrics only",
    "nothing": "nothing",
    None: "not told (worst case)",
}
_NAMES: Final = {
    "bits": "bits",
    "epsilon": "epsilon",
    "delta": "delta",
    "evaluations": "evaluations",
    "cohorts": "different cohorts",
    "most_used": "jobs of the most used patient",
    "feasibility": "answers about cohorts",
}


@dataclass(frozen=True, slots=True)
class Total:
    """One cap: its name, what is spent of it, and whether nothing is left."""

    name: str
    spent: str
    cap: str
    over: bool


def totals(shown: Shown) -> list[Total]:
    """Every cap, in the order in which people ask about them."""
    found: dict[str, Spent] = {"feasibility": shown.feasibility}
    if shown.balance:
        found |= {name: getattr(shown.balance, name) for name in _NAMES if name != "feasibility"}
    return [
        Total(_NAMES[name], _number(found[name].spent), _number(found[name].cap), _used_up(found[name]))
        for name in _NAMES
        if name in found
    ]


def row(line: Line) -> tuple[str, ...]:
    """A job in words."""
    charged = line.charged
    return (
        line.job[:12],
        line.time,
        line.organisation,
        line.purpose,
        line.kind,
        f"{charged.bits:,}",
        f"{charged.epsilon:g}",
        str(charged.evaluations),
        str(line.cohort),
        RELEASED[line.released],
        str(line.departed),
    )


HEADS: Final = (
    *("job", "when", "organisation", "purpose", "kind", "bits", "epsilon"),
    *("evaluations", "cohort", "released", "departed"),
)


def render(manifest: DatasetManifest, shown: Shown) -> str:
    """The page, as HTML text to be written as UTF-8."""
    caps, lines = manifest.disclosure, shown.jobs
    return pages.render(
        "rapha.node.datasets.ledger",
        "page.html",
        "page.css",
        dataset=manifest.dataset,
        title=manifest.title,
        totals=totals(shown),
        heads=HEADS,
        rows=[row(line) for line in lines],
        legend=[(plots.colour(n), name) for n, name in enumerate(plots.organisations(lines))],
        charts=[
            ("Bits after each job, and the cap", plots.bits(lines, caps.bits) if lines else None),
            ("Epsilon after each job, and the cap", plots.epsilon(lines, caps.epsilon)),
            ("Patients by number of jobs", plots.uses(shown.uses) if shown.uses else None),
            ("Patients that cohorts have in common", plots.overlaps(shown.overlaps)),
        ],
        bucket=shown.bucket,
        head=shown.balance.head if shown.balance else "",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:g}"


def _used_up(spent: Spent) -> bool:
    """Nothing is left of a cap; one of 0 offers nothing, and is used up only beyond that."""
    return spent.spent > spent.cap or (spent.cap > 0 and spent.left == 0)
