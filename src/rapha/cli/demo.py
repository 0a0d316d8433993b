"""`rapha demo`: the main job end to end, with real processes, on real data, on this machine."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, leave, say
from rapha.evidence import canonical
from rapha.evidence.verify import Verification, verify
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

if TYPE_CHECKING:
    from rapha.researcher.signing import SignedJob
    from rapha.testing.hospital import Writer
    from rapha.testing.stack import Stack

app = typer.Typer(add_completion=False)


class Pacs(StrEnum):
    """Where the hospital of case dicom keeps its images."""

    AUTO = "auto"
    ORTHANC = "orthanc"
    MOUNT = "mount"


MARK: Final = ".rapha-demo"
"""In a folder that a demo made, so that another may clear it."""
CASES: Final = ("tabular", "outcomes", "dicom", "evaluate")
PLANNED: Final = ("fhir", "text", "genomics", "apple-health")


@app.command()
def demo(
    work: Annotated[Path, typer.Option(help="Where results and the small world go.")] = Path("demo-out"),
    case: Annotated[str, typer.Option(help=f"One of: {', '.join(CASES)}.")] = "tabular",
    keep: Annotated[bool, typer.Option(help="Keep the world (keys, logs, hospital folder).")] = True,
    pacs: Annotated[Pacs, typer.Option(help="Case dicom: where the images are; Orthanc if installed.")] = (
        Pacs.AUTO
    ),
) -> None:
    """Run one signed job from submit to verified bundle: real patients' public data, simulated TEE."""
    if case in PLANNED:
        leave(WRONG_CALL, f"--case {case} is not built yet; there are: {', '.join(CASES)}")
    if case not in CASES:
        leave(WRONG_CALL, f"--case is one of: {', '.join(CASES)}")
    if pacs is not Pacs.AUTO and case != "dicom":
        leave(WRONG_CALL, "--pacs is for --case dicom")
    began = time.monotonic()
    try:
        _clear(work)
    except OSError as error:
        leave(UNKNOWN, f"--work {work}: {error.strerror}")
    try:
        with _stopped_in_order():
            verification = run_demo(work, case, pacs)
    except ModuleNotFoundError as error:
        said = f"case {case} needs {error.name}, which is not installed; `make venv` installs it"
        raise Refused("node.dataset_missing", said) from None
    if not keep:
        from rapha.testing.world import destroy

        destroy(work / "world")
    say(f"\ndone in {time.monotonic() - began:.1f} s; open {work / 'report.html'}")
    raise SystemExit(OK if verification.ok else NO)


def run_demo(work: Path, case: str, pacs: Pacs = Pacs.AUTO) -> Verification:
    """The whole story; leaves bundle.json, trust.json, artifacts/ and report.html in `work`.

    Raises:
        Refused: the job's own code where it isn't delivered; `node.internal` for an Orthanc that is asked
            for and can't be had; `node.dataset_missing` where too little of the case's public data is here.
        ModuleNotFoundError: what ships or reads the case's public data is not installed.
    """
    from rapha.testing import stack as stacks

    with (
        _writer(work / "world" / "hospital" / "pacs", case, pacs) as writer,
        stacks.stack(work / "world", case, writer=writer) as stack,
        stacks.node(stack.world.node),
    ):
        world = stack.world
        say(f"coordinator   {stack.url}")
        _introduce(world.data)
        signed = stack.submit()
        say(f"job           {signed.id[:16]}… built without a container engine, signed, submitted\n")
        offered(stack)
        _watch(stack, signed)
        data = stack.fetch(signed, work)
    (work / "trust.json").write_bytes(world.trust.read_bytes())
    verification = _verify(work, data)
    _report(work, world.node, data, verification, case)
    return verification


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Let SIGTERM and a closed terminal stop what the demo started, as Ctrl-C does."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # whoever ignores it, as nohup does, means to
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _writer(folder: Path, case: str, pacs: Pacs) -> Iterator[Writer | None]:
    """What writes the hospital's dataset, where it is not the case's own writer."""
    from rapha.testing import imaging, orthanc

    if case != "dicom" or pacs is Pacs.MOUNT or (pacs is Pacs.AUTO and not orthanc.installed()):
        yield None
        return
    with imaging.pacs(folder) as writer:
        yield writer


def _introduce(data: Path) -> None:
    """Say where the records are, and what is unusual about them."""
    from rapha.node.node import read_manifest
    from rapha.spec.dataset import LEAST_CELL
    from rapha.spec.imaging import DicomWebSource

    manifest = read_manifest(data)
    match manifest.source:
        case DicomWebSource(url=url):
            say(f"hospital node dials out only; its images are in a PACS (Orthanc), {url}")
        case _:
            say("hospital node dials out only; its records lie in a read-only folder")
    if manifest.minimum_cell < LEAST_CELL:
        for note in manifest.provenance.notes:
            say(f"  note        {note}")


def offered(stack: Stack) -> None:
    """Wait until the node offers its dataset: nothing would ever happen to a job for one that it can't open.

    Raises:
        Refused: the code under which the node says that it can't.
    """
    from rapha.node import journal

    while not any(node["entries"] for node in stack.client.catalogue()):
        for entry in journal.read(stack.world.node / "state" / "journal.jsonl"):
            if entry.event == "dataset":
                raise Refused(str(entry.data["code"]), str(entry.data["detail"]))
        time.sleep(0.05)


def _watch(stack: Stack, signed: SignedJob) -> None:
    from rapha.cli.progress import Gates
    from rapha.testing.stack import people

    with people(stack.world), Gates(stack.world.node / "state" / "journal.jsonl") as display:
        last = stack.follow(signed, display.event)
    if last["state"] != "delivered":
        raise Refused(str(last.get("code") or "node.internal"), str(last.get("detail") or ""))


def _verify(work: Path, data: bytes) -> Verification:
    trust = Trust.parse(canonical.loads((work / "trust.json").read_bytes()))
    result = verify(data, trust, datetime.now(UTC))
    passed = sum(s.verdict == "pass" for s in result.steps)
    emit(f"\nrapha verify {work / 'bundle.json'} --trust {work / 'trust.json'}")
    emit(f"  {'VERIFIED' if result.ok else 'NOT VERIFIED'}: {passed} of {len(result.steps)} steps passed")
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    tampered = verify(changed, trust, datetime.now(UTC))
    step = next((s for s in tampered.steps if s.verdict == "fail"), None)
    emit(f"  one byte changed: {'VERIFIED, which is a defect' if tampered.ok else 'fails'}")
    if step is not None:
        emit(f"    step {step.n} {step.id}: {step.reason[:90]}")
    if tampered.ok:
        raise Refused("node.internal", "a changed bundle verified")
    return result


def _report(work: Path, node: Path, data: bytes, verification: Verification, case: str) -> None:
    from rapha.cli.progress import timeline
    from rapha.node import journal
    from rapha.researcher.report import render

    metrics = json.loads((work / "artifacts" / "metrics.json").read_bytes())
    lines = timeline(journal.read(node / "state" / "journal.jsonl"))
    html = render(bundle=data, verification=verification, metrics=metrics, timeline=lines, case=case)
    (work / "report.html").write_text(html, encoding="utf-8")
    for name, value in sorted(metrics["trusted"].items()):
        if "." not in name:
            low, high = metrics["trusted"].get(f"{name}.low"), metrics["trusted"].get(f"{name}.high")
            emit(f"  {name:<10} {value:.3f}   (95% interval {low} to {high}; held-out patients)")


def _clear(work: Path) -> None:
    """Remove what an earlier demo left, and nothing else; make `work`.

    Raises:
        Refused: `policy.conflict` for a folder in the way that no demo has made.
        OSError: `work` can't be made or written to.
    """
    from rapha.testing.world import destroy

    work.mkdir(parents=True, exist_ok=True)
    world, artifacts, mark = work / "world", work / "artifacts", work / MARK
    ours = world.is_dir() or mark.exists()
    results = [work / name for name in ("bundle.json", "trust.json", "report.html")]
    if not ours and any(path.exists() for path in results):
        # `rapha job fetch` leaves files of the same names: those are somebody's results.
        raise Refused("policy.conflict", f"the files in {work} are not of a demo; choose another --work")
    for folder, marks in (
        (world, (world / "hospital", world / "coordinator")),
        (artifacts, (world, mark)),
    ):
        made = folder.is_dir() and not folder.is_symlink() and any(mark.exists() for mark in marks)
        if (folder.exists() or folder.is_symlink()) and not made:
            raise Refused("policy.conflict", f"{folder} is not of a demo; choose another --work")
    destroy(artifacts)
    destroy(world)
    for path in results:
        path.unlink(missing_ok=True)
    mark.touch()
