"""The page as PDF: exactly one A4 page whatever it is about, and no word of the machine that made it.

Places are fixed and texts are cut to them, so no input can push a line off the page. The standard fonts are
used, which every reader has: what they have no sign for is printed as `?` (the HTML page has it in full).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rapha.node.disclosure.page import Page
from rapha.node.disclosure.shown import Bound, CheckLine, Choice, Meter, Numbers, View
from rapha.node.disclosure.view import view

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = 595.28, 841.89
"""A4 in points (1/72 inch)."""
LEFT, RIGHT = 34.0, WIDTH - 34.0
GAP: Final = 18.0
HALF: Final = (RIGHT - LEFT - GAP) / 2
TOP: Final = HEIGHT - 30.0
BOTTOM: Final = 24.0
SMALLEST: Final = 3.5
PLAIN, BOLD, CODE = "Helvetica", "Helvetica-Bold", "Courier"
INK, SOFT, RULE, PANEL = "#17212b", "#4a5a68", "#c3cbd2", "#f1f4f6"
ACCENT, EARLIER, BAD = "#0b5f8a", "#9db4c2", "#a3221b"
FIELDS: Final = {
    **{"pass": ("#dff0e5", "#17673a"), "fail": ("#fae1df", BAD)},
    **{"not_run": ("#fff0cc", "#6b4a00"), "not_resolvable": ("#fff0cc", "#6b4a00")},
}
"""Paper and ink of a verdict."""
_TENSORS: Final = ("Most changed tensor", "Type", "Clipped", "Largest error")


def render(page: Page) -> bytes:
    """The page as the bytes of a PDF file; the same page always gives the same bytes."""
    from reportlab.pdfgen.canvas import Canvas

    shown, out = view(page), io.BytesIO()
    canvas = Canvas(out, pagesize=(WIDTH, HEIGHT), invariant=1, pageCompression=1, lang="en")
    canvas.setTitle(_printable(f"Disclosure report: {shown.title}"))
    canvas.setAuthor("")
    canvas.setSubject(f"Page {page.digest}")
    canvas.setCreator("rapha")
    _Sheet(canvas).draw(shown)
    canvas.showPage()
    canvas.save()
    return out.getvalue()


def _printable(text: str) -> str:
    return text.encode("cp1252", "replace").decode("cp1252")


class _Sheet:
    """A page that is filled from the top: `y` is the next free line."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self.y = TOP

    def draw(self, shown: View) -> None:
        self._head(shown)
        below = self.y
        self._bound(shown.bound, LEFT)
        ends = [self.y]
        self.y = below
        self._caps(shown, LEFT + HALF + GAP)
        self.y = min(*ends, self.y) - 5
        self._checks(shown.checks)
        below = self.y
        self._weights(shown, LEFT)
        ends = [self.y]
        self.y = below
        self._worth(shown, LEFT + HALF + GAP)
        self.y = min(*ends, self.y) - 5
        self._decide(shown)

    def _head(self, shown: View) -> None:
        self._line(shown.kicker, size=7.5, colour=SOFT, down=15)
        self._line(shown.title, size=15, font=BOLD, down=7)
        if shown.stamp:
            self._box(LEFT, self.y - 9, RIGHT - LEFT, 13, "#fff0cc", "#b97d00")
            self._put(shown.stamp, LEFT + 6, self.y - 5.5, RIGHT - LEFT - 12, BOLD, 7.5, "#4a3000")
            self.y -= 14
        self.y -= 8
        for name, value in shown.facts:
            self._put(name, LEFT, self.y, 58, PLAIN, 7.5, SOFT)
            self._put(value, LEFT + 60, self.y, RIGHT - LEFT - 60, PLAIN, 7.5, INK)
            self.y -= 10
        self.y -= 2

    def _bound(self, bound: Bound, x: float) -> None:
        self._heading("The most that could be hidden in a release", x, HALF)
        big = f"{bound.bits} bits"
        self._put(big, x, self.y - 5, HALF, BOLD, 15, INK)
        used = self._width(big, BOLD, 15) + 6
        self._put(bound.size, x + used, self.y - 5, max(0.0, HALF - used), PLAIN, 8.5, SOFT)
        self.y -= 17
        files = ", ".join(f"{name} ({size})" for name, size in bound.files)
        self._text(
            f"Equals {bound.slices} CT slices (512×512×16 bit) or {bound.rows} identifier rows (64 bytes). "
            f"Leaves: {files}{', ' + bound.more_files if bound.more_files else ''}.",
            *(x, HALF, 4),
        )
        self.y -= 2
        for part in bound.parts:
            self._bar(x, part.name, f"{part.bits} bits", ((ACCENT, part.share),))

    def _caps(self, shown: View, x: float) -> None:
        self._heading("All jobs on this dataset", x, HALF)
        self._text(shown.ledger, x, HALF, 2)
        self.y -= 2
        for meter in shown.meters:
            self._meter(meter, x)
        self._text(shown.guarantee, x, HALF, 3, font=BOLD)

    def _meter(self, meter: Meter, x: float) -> None:
        first, second = (BAD, BAD) if meter.over else (EARLIER, ACCENT)
        self._bar(x, meter.name, meter.said, ((first, meter.before), (second, meter.job)))

    def _bar(self, x: float, name: str, value: str, shares: Sequence[tuple[str, float]]) -> None:
        room = self._put(value, x + HALF, self.y, HALF * 0.68, PLAIN, 6.8, SOFT, right=True)
        self._put(name, x, self.y, HALF - room - 4, PLAIN, 6.8, INK)
        self._box(x, self.y - 6, HALF, 3.6, PANEL, None)
        at = x
        for colour, share in shares:
            if share:
                width = min(max(1.2, HALF * share), x + HALF - at)
                self._box(at, self.y - 6, width, 3.6, colour, None)
                at += width
        self.y -= 15

    def _checks(self, checks: Sequence[CheckLine]) -> None:
        self._heading("Nine checks, and what they do not show", LEFT, RIGHT - LEFT)
        share = (RIGHT - LEFT) / max(1, len(checks))
        for at, check in enumerate(checks):
            paper, ink = FIELDS[check.verdict]
            x = LEFT + at * share
            self._box(x + 1, self.y - 15, share - 2, 20, paper, RULE)
            for text, font, dy in ((f"{check.n} {check.id}", BOLD, -2.5), (check.mark, PLAIN, -11)):
                self._centred(text, x + share / 2, self.y + dy, share - 6, font, 6.5, ink)
        self.y -= 25
        for check in checks:
            self._check(check)

    def _check(self, check: CheckLine) -> None:
        found, shows = LEFT + 118, LEFT + 345
        self._put(f"{check.n} {check.id}", LEFT, self.y, 58, BOLD, 6.8, INK)
        self._put(check.mark, LEFT + 60, self.y, 56, BOLD, 6.8, FIELDS[check.verdict][1])
        top = self.y
        self._text(check.found, found, shows - found - 8, 3, size=6.8, lead=7.8)
        low, self.y = self.y, top
        self._text(f"Not shown: {check.does_not_show}", shows, RIGHT - shows, 2, SOFT, size=6.8, lead=7.8)
        self.y = min(low, self.y) - 1.2
        self._rule(LEFT, RIGHT, self.y + 6.2)
        self.y -= 1.4

    def _weights(self, shown: View, x: float) -> None:
        self._heading("What was done to the weights", x, HALF)
        self._text(shown.transformed, x, HALF, 3)
        self._table(_TENSORS, shown.tensors, x, shown.show)

    def _worth(self, shown: View, x: float) -> None:
        self._heading("What they are worth", x, HALF)
        self._text(shown.measured, x, HALF, 2)
        self._table(("Measured by the node", "Value", "95% interval"), shown.trusted, x, shown.show)
        self._table(("The job's own word", "Checked by nobody"), shown.reported, x, shown.show)

    def _table(self, heads: tuple[str, ...], numbers: Numbers, x: float, show: str) -> None:
        if numbers.rows:
            self._row(heads, x, SOFT)
            for row in numbers.rows:
                self._row(row, x, INK)
        if numbers.cut:
            self._put(f"{numbers.more or 'in full'}: `{show}`", x, self.y, HALF, PLAIN, 5.8, SOFT)
            self.y -= 9

    def _row(self, cells: Sequence[str], x: float, colour: str) -> None:
        first = HALF * (0.46 if len(cells) > 2 else 0.6)
        rest = (HALF - first) / (len(cells) - 1)
        self._put(cells[0], x, self.y, first - 4, BOLD if colour == INK else PLAIN, 6.8, colour)
        for at, cell in enumerate(cells[1:], start=1):
            # Smaller rather than cut short: of a number, what is left of it reads as another number.
            wide = max(1.0, self._width(_printable(cell), PLAIN, 6.8))
            size = max(SMALLEST, min(6.8, 6.8 * (rest - 3) / wide - 0.01))
            self._put(cell, x + first + at * rest, self.y, rest - 3, PLAIN, size, colour, right=True)
        self._rule(x, x + HALF, self.y - 2)
        self.y -= 9.4

    def _decide(self, shown: View) -> None:
        self._box(LEFT, self.y - 10, RIGHT - LEFT, 17, "#ffffff", INK)
        self._put(shown.sentence, LEFT + 7, self.y - 4.5, RIGHT - LEFT - 14, BOLD, 9, INK)
        self.y -= 18
        width = (RIGHT - LEFT - 12) / 3
        below = self.y
        for at, choice in enumerate(shown.choices):
            self.y = below
            self._choice(choice, LEFT + at * (width + 6), width)
        self.y = below - 54
        self._text(shown.signing, LEFT, RIGHT - LEFT, 2)
        self.y -= 2
        for name, value in shown.digests:
            self._put(f"{name} {value}", LEFT, self.y, RIGHT - LEFT, CODE, 6, SOFT)
            self.y -= 7.5

    def _choice(self, choice: Choice, x: float, width: float) -> None:
        self._box(x, self.y - 46, width, 48, PANEL, RULE)
        edge = {"release": ACCENT, "metrics-only": SOFT, "refuse": BAD}[choice.verdict]
        self._box(x, self.y, width, 2.2, edge, None)
        self._put(choice.title, x + 6, self.y - 9, width - 12, BOLD, 8.5, INK)
        self.y -= 18
        self._text(choice.consequence, x + 6, width - 12, 2, size=6.8, lead=7.8)
        self._text(choice.command, x + 6, width - 12, 2, SOFT, font=CODE, size=5.4, lead=6.6)

    def _heading(self, text: str, x: float, width: float) -> None:
        self._rule(x, x + width, self.y + 3)
        self._put(text, x, self.y - 8, width, BOLD, 9, INK)
        self.y -= 19

    def _line(self, text: str, *, size: float, down: float, font: str = PLAIN, colour: str = INK) -> None:
        self._put(text, LEFT, self.y, RIGHT - LEFT, font, size, colour)
        self.y -= down

    def _text(
        self,
        text: str,
        x: float,
        width: float,
        most: int,
        colour: str = INK,
        *,
        font: str = PLAIN,
        size: float = 7.2,
        lead: float = 8.6,
    ) -> None:
        """At most `most` lines; the last one is cut short."""
        lines: list[str] = []
        for word in _printable(text).split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and (len(lines) == most or self._width(longer, font, size) <= width):
                lines[-1] = longer
            else:
                lines.append(word)
        for line in lines:
            self._put(line, x, self.y, width, font, size, colour)
            self.y -= lead

    def _put(
        self,
        text: str,
        x: float,
        y: float,
        width: float,
        font: str,
        size: float,
        colour: str,
        *,
        right: bool = False,
    ) -> float:
        """One line, cut to `width`; returns what it takes."""
        cut = self._cut(_printable(text), width, font, size)
        self._canvas.setFont(font, size)
        self._canvas.setFillColor(colour)
        draw = self._canvas.drawRightString if right else self._canvas.drawString
        draw(x, y, cut)
        return self._width(cut, font, size)

    def _centred(self, text: str, x: float, y: float, width: float, font: str, size: float, ink: str) -> None:
        cut = self._cut(_printable(text), width, font, size)
        self._put(cut, x - self._width(cut, font, size) / 2, y, width, font, size, ink)

    def _cut(self, text: str, width: float, font: str, size: float) -> str:
        if self._width(text, font, size) <= width:
            return text
        low, high = 0, len(text)
        while low < high:  # the longest beginning that fits with an ellipsis
            middle = (low + high + 1) // 2
            fits = self._width(f"{text[:middle]}…", font, size) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return f"{text[:low]}…" if low else ""

    def _width(self, text: str, font: str, size: float) -> float:
        return float(self._canvas.stringWidth(text, font, size))

    def _box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str | None) -> None:
        self._canvas.setFillColor(fill)
        if stroke:
            self._canvas.setStrokeColor(stroke)
            self._canvas.setLineWidth(0.6)
        self._canvas.roundRect(x, y, width, height, min(2.0, height / 2), stroke=int(bool(stroke)), fill=1)

    def _rule(self, x: float, end: float, y: float) -> None:
        self._canvas.setStrokeColor(RULE)
        self._canvas.setLineWidth(0.4)
        self._canvas.line(x, y, end, y)
