"""The page for a terminal: it has no sheet, so everything that would leave is on it."""

from __future__ import annotations

from collections.abc import Iterator

from rapha.node.disclosure.page import Page
from rapha.node.disclosure.shown import Numbers, View
from rapha.node.disclosure.view import view


def render(page: Page) -> str:
    """The page as lines of plain text."""
    return "\n".join(_lines(view(page)))


def _lines(shown: View) -> Iterator[str]:
    yield from (shown.kicker, shown.title, *filter(None, [shown.stamp]), "")
    yield from (f"  {name:<12} {value}" for name, value in shown.facts)
    bound = shown.bound
    yield from (
        "",
        f"At most {bound.bits} bits ({bound.size}) could be hidden in a release: {bound.slices} CT",
    )
    yield f"slices (512x512x16 bit) or {bound.rows} identifier rows (64 bytes)."
    yield from (f"  {part.name:<46} {part.bits:>16} bits" for part in bound.parts)
    yield from (f"  leaves {name}, {size}" for name, size in bound.all_files)
    yield from ("", shown.ledger, *(f"  {meter.name:<30} {meter.said}" for meter in shown.meters))
    yield from (shown.guarantee, "", "Nine checks")
    for check in shown.checks:
        yield f"  {check.n} {check.id:<10} {check.mark:<15} {check.found}"
        yield f"    does not show: {check.does_not_show}"
    yield from ("", shown.transformed)
    yield from _rows(shown.tensors, "Most changed tensor", "Type", "Clipped", "Largest error")
    yield shown.measured
    yield from _rows(shown.trusted, "Measured by the node", "Value", "95% interval")
    yield from _rows(shown.reported, "The job's own words", "Checked by nobody")
    yield from ("", shown.sentence, "")
    for choice in shown.choices:
        yield from (f"  {choice.title}: {choice.consequence}", f"    {choice.command}")
    yield from (shown.signing, *(f"{name}: {value}" for name, value in shown.digests))


def _rows(numbers: Numbers, *heads: str) -> Iterator[str]:
    for first, *rest in (heads, *numbers.whole) if numbers.whole else ():
        yield f"  {first:<34} {'  '.join(f'{cell:>12}' for cell in rest)}".rstrip()
