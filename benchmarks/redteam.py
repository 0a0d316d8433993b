"""The red team: what each way to hide data in weights gets past the guard, beside the bound that is stated.

    python benchmarks/redteam.py [--only NAME] [--html FILE]

One JSON line an encoder and release: bits a parameter that survive, over the bound of the release plan. A
table for people goes to stderr. Exits 1 where anything survives above its bound, or gets by that must not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from rapha.runtime.charts import Element, Frame, Markup, Scale, axes, fixed, label, shape
from rapha.testing.smuggling.catalogue import ENCODERS, Encoder
from rapha.testing.smuggling.trial import RELEASES, Release, Result, run

SEED: Final = 5
ROW: Final = 22
"""Pixels of a row of the plot."""
PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Red team against the output guard</title>
<style>
body {{ font: 15px system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222 }}
svg {{ width: 100% }} pre {{ overflow-x: auto; font-size: 11px }}
.grid {{ stroke: #ddd }} .tick, .axis {{ font-size: 11px; fill: #555 }} .mark {{ fill-opacity: .75 }}
.f32 {{ fill: #222 }} .bf16 {{ fill: #1f77b4 }} .f16 {{ fill: #2ca02c }} .int8 {{ fill: #d62728 }}
.int4 {{ fill: #ff7f0e }} .int2 {{ fill: #bcbd22 }}
.bf16-noise {{ fill: #9467bd }} .int8-noise {{ fill: #8c564b }}
</style>
<h1>What gets past the output guard</h1>
{plot}
<pre>{table}</pre>
</html>
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One encoder against one release."""

    encoder: Encoder
    release: Release
    result: Result

    @property
    def fault(self) -> str:
        """What the guard did that it must not; empty where all is well."""
        result = self.result
        if self.encoder.fate == "refused" and result.refused is None:
            return "was not refused"
        if self.encoder.fate == "nothing" and result.survives > 0:
            return "should carry nothing"
        return "is above the bound" if result.survives > result.bound else ""

    def dump(self) -> str:
        """As a line of JSON."""
        result = self.result
        line = {
            "name": f"redteam.{self.encoder.name}.{self.release.name}",
            "ours": round(result.survives, 4),
            "theirs": round(result.bound, 4),
            "unit": "bits/parameter",
            "ratio": round(result.survives / result.bound, 4),
            "sent": round(result.sent, 4),
        }
        return json.dumps(line | ({"refused": result.refused} if result.refused else {}))


def attempts(encoder: Encoder) -> Iterator[Line]:
    """The encoder against every release that has a place for it; the payload is the same in each run."""
    for release in RELEASES:
        attempt = encoder.make(release, np.random.default_rng(SEED))
        if attempt is not None:
            yield Line(encoder, release, run(attempt))


def table(lines: Sequence[Line]) -> str:
    """Bits a parameter that survive, by encoder and release, with the bound in the last line."""
    names = [release.name for release in RELEASES]
    rows = [["survives, bits/parameter", *names, "and the model"]]
    found = {(line.encoder, line.release.name): line.result for line in lines}
    for encoder in dict.fromkeys(line.encoder for line in lines):
        results = [found.get((encoder, name)) for name in names]
        use = next((result.use for result in results if result and result.use), "")
        rows.append([encoder.name, *map(_cell, results), use])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    note = "Of refused ones a code is shown. Stated bounds, of a plan with one float tensor:"
    bounds = {line.release.name: line.result.bound for line in lines if line.encoder.name == "sign"}
    stated = ", ".join(f"{name} {bound:.2f}" for name, bound in bounds.items())
    return "\n".join(line.rstrip() for line in [*said, "", f"{note} {stated}."]) + "\n"


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    return result.refused.removeprefix("guard.") if result.refused else f"{result.survives:.3f}"


def page(lines: Sequence[Line]) -> str:
    """A plot of survival over bound for what the guard lets pass, as one HTML page."""
    shown = [line for line in lines if line.result.refused is None]
    return PAGE.format(plot=plot(shown), table=escape(table(lines)))


def plot(lines: Sequence[Line]) -> Markup:
    """A row an encoder, a mark a release, at the share of the stated bound that survives."""
    encoders = list(dict.fromkeys(line.encoder for line in lines))
    height = ROW * len(encoders)
    frame = Frame(Scale(170, 690), Scale(10 + height, 10))
    rows = [((len(encoders) - n - 0.5) / len(encoders), encoder.name) for n, encoder in enumerate(encoders)]
    at = dict(zip(encoders, (place for place, _ in rows), strict=True))
    parts = axes(frame, "share of the stated bound that survives", "", y_ticks=rows)
    for line in lines:
        x, y = frame.at((line.result.survives / line.result.bound, at[line.encoder]))
        mark = shape("circle", f"mark {line.release.name}", cx=x, cy=y, r=4)
        mark.append(_title(f"{line.encoder.name}, {line.release.name}: {line.result.survives:.3f} bits"))
        parts.append(mark)
    for n, release in enumerate(RELEASES):
        parts.append(shape("circle", f"mark {release.name}", cx=20 + 86 * n, cy=height + 62, r=4))
        parts.append(label(release.name, "tick", x=28 + 86 * n, y=height + 66))
    words = "What survives of each encoding, as a share of the stated bound; none is beyond 1."
    return fixed("redteam", "Red team against the output guard", words, (710, height + 75), parts)


def _title(text: str) -> Element:
    element = shape("title", "")
    element.text = text
    return element


def main() -> int:
    """Run all attempts. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="encoders whose name begins so")
    parser.add_argument("--html", type=Path, help="write a page with the plot")
    arguments = parser.parse_args()
    lines: list[Line] = []
    for encoder in ENCODERS:
        if encoder.name.startswith(arguments.only):
            row = list(attempts(encoder))
            lines += row
            print("\n".join(line.dump() for line in row), flush=True)
    sys.stderr.write(table(lines))
    if arguments.html:
        arguments.html.write_text(page(lines), encoding="utf-8")
    faults = [f"{line.encoder.name} as {line.release.name} {line.fault}" for line in lines if line.fault]
    sys.stderr.write("".join(f"FAULT: {fault}\n" for fault in faults))
    return 1 if faults or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
