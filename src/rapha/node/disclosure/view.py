"""The page in words, for all its forms. Every list and text ends somewhere, so one A4 page holds it.

Beside each list that ends is all of it, for the forms that have room: nothing is signed that nobody can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from rapha.node.disclosure import numbers
from rapha.node.disclosure.page import Outgoing, Page, Signer, Source, Verdicted
from rapha.node.disclosure.shown import Bound, CheckLine, Choice, Meter, Part, View
from rapha.node.disclosure.words import in_full, more, short
from rapha.runtime import sizes
from rapha.runtime.guard.report import Transform
from rapha.spec.disclosure import Balance, Guarantee, Price, Spent
from rapha.spec.verdicts import SENTENCE, Verdict

FILES: Final = 2
AUTHORS: Final = 1
SIGNERS: Final = 3
FOUND: Final = 190
"""Most characters of what a check found."""
_PARTS: Final[tuple[tuple[str, tuple[Source, ...]], ...]] = (
    ("Weights", ("weights",)),
    ("Trusted metrics", ("metrics",)),
    ("Self-reported values", ("self_reported",)),
    ("Counts of records, patients, time and memory", ("counts", "resources")),
    ("How the job ended, and when", ("verdict", "timing")),
)
_MARK: Final = {"pass": "pass", "fail": "FAIL", "not_run": "not run", "not_resolvable": "not resolvable"}
_COMMANDS: Final[dict[Verdict, str]] = {
    "release": "",
    "metrics-only": " --metrics-only",
    "refuse": " --refuse",
}
_TITLES: Final[dict[Verdict, str]] = {
    "release": "Release",
    "metrics-only": "Metrics only",
    "refuse": "Refuse",
}


def view(page: Page) -> View:
    """The words of `page`."""
    digest = page.digest
    return View(
        title=f"{short(page.name, 48)} ({page.kind})",
        kicker=f"Disclosure report · {short(page.hospital)} · node {short(page.node)}",
        stamp=_stamp(page),
        facts=_facts(page),
        bound=_bound(page.release),
        guarantee=_guarantee(page.guarantee),
        meters=_meters(page.balance, page.charge) if page.balance else (),
        ledger=_ledger(page.balance),
        checks=tuple(map(_check, page.checks)),
        transformed=_transformed(page.transforms),
        tensors=numbers.tensors(page.transforms),
        trusted=numbers.trusted(page.trusted),
        measured=_measured(page),
        reported=numbers.reported(dict(page.self_reported)),
        sentence=SENTENCE,
        choices=tuple(_choice(page, verdict, digest) for verdict in page.choices),
        signing=_signing(page),
        show=f"rapha node releases show {page.job[:8]}",
        digests=(("Page", digest), ("Job", page.job), ("Guard's report", page.report)),
    )


def _stamp(page: Page) -> str:
    if page.assurance == "simulated" or page.profile == "demo":
        return (
            f"Assurance: {page.assurance}. Profile: {page.profile}. For demonstrations and public data only."
        )
    return ""


def _facts(page: Page) -> tuple[tuple[str, str], ...]:
    authors = "; ".join(_person(p) for p in page.written_by[:AUTHORS])
    rest = more(len(page.written_by) - AUTHORS, "keys")
    ours = "the hospital's trainer, for " if page.guarantee else ""
    return (
        ("Written by", f"{ours}{short(page.company)} ({short(page.company_id, 24)})"),
        ("Signed with", f"{authors} {rest}".rstrip()),
        ("Dataset", f"{short(page.dataset_title, 48)} ({short(page.dataset, 24)})"),
        ("Purpose", f"{short(page.purpose, 48)}, {short(page.patients, 48)}"),
    )


def _person(person: Signer) -> str:
    return f"{short(person.name, 24)}, {short(person.role, 20)}, key {person.key[:12]}…"


def _bound(release: Outgoing) -> Bound:
    total = sum(release.parts.values())
    files = release.files[:FILES]
    return Bound(
        bits=f"{release.bits:,}",
        size=sizes.size(-(-release.bits // 8)),
        slices=sizes.slices(release.bits),
        rows=sizes.rows(release.bits),
        files=tuple((short(f.name), sizes.size(f.bytes)) for f in files),
        more_files=more(len(release.files) - FILES, "files"),
        all_files=tuple((in_full(f.name), sizes.size(f.bytes)) for f in release.files),
        parts=tuple(
            Part(name, _bits(bits), bits / total)
            for name, sources in _PARTS
            if (bits := sum(release.parts.get(source, 0.0) for source in sources))
        ),
    )


def _bits(bits: float) -> str:
    return f"{bits:,.0f}" if bits >= 100 else f"{bits:,.1f}"


def _guarantee(guarantee: Guarantee | None) -> str:
    if guarantee is None:
        return "Differential privacy: none. Nothing bounds what the job's own code learned of one patient."
    return (
        f"Differential privacy of the weights ({short(guarantee.mechanism)}), enforced by the hospital: "
        f"epsilon {guarantee.epsilon:.3g}, delta {guarantee.delta:.1g}, unit one {guarantee.unit}. "
        "Metrics, counts and the way the job ended are outside it."
    )


def _meters(balance: Balance, charge: Price | None) -> tuple[Meter, ...]:
    own = charge or Price(bits=0)
    spent, cap, bits = balance.bits.spent, balance.bits.cap, min(float(own.bits), balance.bits.spent)
    said = f"{_bytes(spent)} of {_bytes(cap)}, by this job {_bytes(bits)}"
    first = _meter("Given away so far, at most", said, balance.bits, bits)
    lines = (
        ("Privacy loss (epsilon)", balance.epsilon, own.epsilon),
        ("Jobs told trusted metrics", balance.evaluations, own.evaluations),
        ("Different cohorts", balance.cohorts, 0.0),
        ("Jobs of the most used patient", balance.most_used, 0.0),
    )
    rest = (
        _meter(name, f"{_amount(line.spent)} of {_amount(line.cap)}", line, min(job, line.spent))
        for name, line, job in lines
        if line.cap or line.spent
    )
    return (first, *rest)


def _bytes(bits: float) -> str:
    return sizes.size(math.ceil(bits / 8))


def _meter(name: str, said: str, line: Spent, job: float = 0.0) -> Meter:
    scale = line.cap or line.spent or 1.0
    end = min(1.0, line.spent / scale)
    own = min(job / scale, end)
    return Meter(name, said, before=end - own, job=own, over=line.spent > line.cap)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def _ledger(balance: Balance | None) -> str:
    if balance is None:
        return "No disclosure ledger is kept for this dataset: nothing adds up what several jobs give away."
    return f"Over {balance.jobs:,} jobs of all organisations on this dataset, this one charged at its worst:"


def _check(check: Verdicted) -> CheckLine:
    return CheckLine(
        n=check.n,
        id=short(check.id, 16),
        verdict=check.verdict,
        mark=_MARK[check.verdict],
        found=short(check.found, FOUND),
        does_not_show=short(check.does_not_show, FOUND),
    )


def _transformed(transforms: Sequence[Transform]) -> str:
    if not transforms:
        return "No tensor would leave."
    clipped = sum(t.clipped for t in transforms)
    kinds = ", ".join(sorted({f"{t.dtype} to {t.released_as}" for t in transforms}))
    worst = max(t.largest_error for t in transforms)
    noise = max(t.noise_std for t in transforms)
    noisy = f" noise of standard deviation {noise:.3g} was added;" if noise else ""
    return (
        f"{len(transforms):,} tensors, {short(kinds)}; {clipped:,} values clipped into the planned range;"
        f"{noisy} rounding moved no value by more than {worst:.3g}."
    )


def _measured(page: Page) -> str:
    if not page.trusted:
        return "No trusted metric was computed."
    of = "the base model"
    if page.kind == "train":
        rounded = "the rounded weights above, not of those before"
        of = rounded if page.transforms else "the job's code alone: no weights would leave"
    return f"Computed by the node on held-out patients, of {of}; 95% intervals."


def _choice(page: Page, verdict: Verdict, digest: str) -> Choice:
    outgoing = {"release": page.release, "metrics-only": page.metrics_only, "refuse": None}[verdict]
    says = "Nothing leaves; the job ends."
    if outgoing is not None:
        says = f"At most {outgoing.bits:,} bits in {_names(f.name for f in outgoing.files)}."
    if verdict == "metrics-only":
        says = f"Weights and self-reported values are destroyed. {says}"
    # With the page's own digest: no other page that waits by then is signed in its place.
    command = f"rapha node releases sign {page.job[:12]} --key KEY{_COMMANDS[verdict]} --page {digest[:16]}"
    return Choice(verdict, _TITLES[verdict], says, command)


def _names(names: Iterable[str]) -> str:
    found = list(names)
    rest = more(len(found) - FILES, "files")
    return f"{', '.join(short(n, 24) for n in found[:FILES])} {rest}".rstrip()


def _signing(page: Page) -> str:
    people = "; ".join(f"{short(p.name, 24)} ({short(p.role, 22)})" for p in page.reviewers[:SIGNERS])
    rest = more(len(page.reviewers) - SIGNERS, "people")
    return (
        "One refusal ends the job; else the narrowest verdict counts. "
        f"{page.required} of {len(page.reviewers)} must sign: {people} {rest}".rstrip()
    )
