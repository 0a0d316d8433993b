"""Pseudonyms of distinct identifiers, on one core, against the standard library's HMAC and against the bar.

    python benchmarks/pseudonyms.py [--identifiers N] [--rounds N]

The identifiers are DICOM UIDs of 33 to 47 characters, none of them twice, so that remembering saves nothing.
Contestants take turns; the best round of each counts, since other work on the machine only ever slows one.
One JSON line a comparison: {"name", "ours", "theirs", "ratio", "unit"}; unit is million identifiers a second.
"""

from __future__ import annotations

import argparse
import hmac
import json
import time
from collections.abc import Callable, Sequence

from rapha.node.datasets.pseudonyms import HospitalKey

BAR = 1.2
"""Million identifiers a second that one core has to make."""
KIND = "SOPInstanceUID"


def standard_library(key: bytes, identifiers: Sequence[str]) -> bytes:
    """The same digests by `hmac.digest`, the fastest that the standard library has."""
    return b"".join([hmac.digest(key, identifier.encode(), "sha256")[:16] for identifier in identifiers])


def speed(work: Callable[[], object], count: int) -> float:
    """Million a second of CPU time: what other processes take of the core is not counted."""
    start = time.process_time()
    work()
    return count / (time.process_time() - start) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--identifiers", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    count = options.identifiers
    identifiers = [f"1.2.840.113619.2.55.3.{n * 7919}.20260101.{n}" for n in range(count)]
    key = HospitalKey.generate()
    derived = key.derive("pseudonym", "job", KIND)
    same = key.pseudonyms("job", KIND, identifiers[:1000]).tobytes()
    if same != standard_library(derived, identifiers[:1000]):
        raise SystemExit("the two don't compute the same")
    ours, theirs = 0.0, 0.0
    for _ in range(options.rounds):
        ours = max(ours, speed(lambda: key.pseudonyms("job", KIND, identifiers), count))
        theirs = max(theirs, speed(lambda: standard_library(derived, identifiers), count))
    for name, other in (("pseudonyms.vs_stdlib_hmac", theirs), ("pseudonyms.vs_bar", BAR)):
        line = {"name": name, "ours": round(ours, 3), "theirs": round(other, 3)}
        print(json.dumps({**line, "ratio": round(ours / other, 3), "unit": "M/s"}))


if __name__ == "__main__":
    main()
