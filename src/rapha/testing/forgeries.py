"""What a node's operator might lie about, and the step of the verification that must catch each lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Parts = dict[str, Any]
Change = Callable[[Parts], None]


def _nothing(_: Parts) -> None:
    return


@dataclass(frozen=True, slots=True)
class Forgery:
    """A lie that the node's operator signs.

    Attributes:
        step: the step of `rapha.evidence.verify` that must catch it.
        sections: changes the bundle's sections before they are bound again.
        receipt: changes the receipt's predicate before it is signed again.
        subjects: changes the receipt's subjects.
    """

    name: str
    step: str
    sections: Change = _nothing
    receipt: Change = _nothing
    subjects: Change = _nothing


NOTHING: Final = Forgery("nothing", "")


def _set(*path: str | int, to: Any) -> Change:
    def change(parts: Parts) -> None:
        target: Any = parts
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to(target[path[-1]]) if callable(to) else to

    return change


_TOLD: Final = ("surface", "artifacts", 0)
_FAILED: Final = {
    **{"outcome": "failed", "code": "job.failed", "exit_class": "failed"},
    **{"artifacts": [], "metrics": {}},
}
_SEVERED: Final = {
    **{"interface": "eth0", "waiver": None, "mode": "link"},
    **{"wan_bytes_sent": 0, "lifted": True},
}


def _weights(parts: Parts) -> Parts:
    found: Parts = next(r for r in parts["guard"]["released"] if r["name"].endswith(".safetensors"))
    return found


def _without_check(at: int) -> Change:
    return lambda parts: parts["guard"]["checks"].pop(at)


def _turned(at: int) -> Change:
    return _set("guard", "checks", at, "verdict", to=lambda told: "pass" if told == "not_run" else "not_run")


def _one_more(n: int) -> Change:
    return lambda parts: parts["guard"]["checks"].append({"n": n, "id": "caps", "verdict": "pass"})


FORGERIES: Final = (
    Forgery("another job id", "receipt", receipt=_set("job", "id", to="0" * 64)),
    Forgery("another company", "receipt", receipt=_set("job", "company", to="somebody-else")),
    Forgery("another purpose", "receipt", receipt=_set("job", "purpose", to="marketing")),
    Forgery("another image", "receipt", receipt=_set("image", to="sha256:" + "0" * 64)),
    Forgery("another node's name", "receipt", receipt=_set("node", to="other-node")),
    Forgery("another dataset", "receipt", receipt=_set("dataset", "id", to="other-dataset")),
    Forgery("higher assurance", "posture", receipt=_set("assurance", to="tee+tpm")),
    Forgery(
        "finished before it began", "receipt", receipt=_set("times", "finished", to="2020-01-01T00:00:00Z")
    ),
    Forgery("admitted long ago", "receipt", receipt=_set("times", "admitted", to="2020-01-01T00:00:00Z")),
    Forgery("an unknown claim", "receipt", receipt=_set("also", to="true")),
    Forgery("more records than the cap", "metering", receipt=_set("usage", "records", to=10**9)),
    Forgery("a higher cap", "metering", receipt=_set("usage", "cap", to=10**9)),
    Forgery("a count outside the buckets", "metering", receipt=_set("usage", "records", to=lambda n: n - 1)),
    Forgery("more patients than records", "metering", receipt=_set("usage", "patients", to=10**6)),
    Forgery("counts called attested", "metering", receipt=_set("usage", "counts", to="attested")),
    Forgery("nothing probed", "seal", receipt=_set("airgap", "probes", to={})),
    Forgery("a smaller covert bound", "guard", receipt=_set("covert_bound_bits", to=1)),
    Forgery("another cohort", "approval", receipt=_set("dataset", "cohort", to="0" * 64)),
    Forgery("no word of the ledger", "receipt", receipt=lambda r: r["dataset"].pop("ledger")),
    Forgery("another manifest", "approval", receipt=_set("dataset", "manifest", to="0" * 64)),
    Forgery("a section not bound", "sections", receipt=_set("sections", "scan", to="0" * 64)),
    Forgery("a section left out", "sections", receipt=lambda r: r["sections"].pop("reviews")),
    Forgery("another policy input", "approval", sections=_set("policy", "input", to="0" * 64)),
    Forgery("other policy bundles", "policy", sections=_set("policy", "bundles", to=["0" * 64])),
    Forgery("a policy that says no", "policy", sections=_set("policy", "allow", to=False)),
    Forgery("a scan of another image", "scan", sections=_set("scan", "image", to="sha256:" + "0" * 64)),
    Forgery("a scan with refusals", "scan", sections=_set("scan", "refusals", to=1)),
    Forgery("one owner's approval missing", "approval", sections=lambda p: p["approvals"].pop()),
    Forgery("one owner counted twice", "approval", sections=_set("approvals", to=lambda a: [a[0], a[0]])),
    Forgery("no approvals", "approval", sections=_set("approvals", to=[])),
    Forgery("no reviews", "review", sections=_set("reviews", to=[])),
    Forgery("a review as an approval", "approval", sections=lambda p: p["approvals"].append(p["reviews"][0])),
    Forgery("another disclosure report", "review", sections=_set("guard", "report", to="0" * 64)),
    Forgery("a failed guard check", "guard", sections=_set("guard", "checks", 0, "verdict", to="not_run")),
    Forgery("a guard check left out", "guard", sections=lambda p: p["guard"]["checks"].pop(0)),
    *(Forgery(f"no guard check {n + 1}", "guard", sections=_without_check(n)) for n in (5, 6)),
    *(Forgery(f"guard check {n + 1} turned around", "guard", sections=_turned(n)) for n in (5, 6)),
    *(Forgery(f"a guard check {n}", "guard", sections=_one_more(n)) for n in (0, 8, 9, 10)),
    Forgery(
        "a guard check by another name", "guard", sections=_set("guard", "checks", 6, "id", to="privacy")
    ),
    Forgery("another released file", "guard", sections=_set("guard", "released", 0, "sha256", to="0" * 64)),
    Forgery("another artifact", "guard", subjects=_set("artifact:model.safetensors", to="0" * 64)),
    Forgery("an artifact more", "guard", subjects=_set("artifact:records.csv", to="0" * 64)),
    Forgery("a subject of another kind", "guard", subjects=_set("record:1", to="0" * 64)),
    Forgery("the ticket of another evidence", "posture", sections=_set("admission", "nonce", to="0" * 64)),
    Forgery("the seal's evidence twice", "posture", sections=lambda p: p.update(admission=p["seal"])),
    Forgery("no second look", "seal", sections=lambda p: p.update(seal=p["admission"])),
    Forgery("an unknown field in a section", "guard", sections=_set("guard", "note", to="x")),
    # The surface is what the researcher was told.
    Forgery("a surface of free text", "surface", sections=_set("surface", to={"anything": "AUROC 0.999"})),
    Forgery("another job's surface", "surface", sections=_set("surface", "job_id", to="0" * 64)),
    Forgery("a surface that failed", "surface", sections=lambda p: p["surface"].update(_FAILED)),
    Forgery("a surface with a detail", "surface", sections=_set("surface", "detail", to="patient 7")),
    Forgery("another metric told", "surface", sections=_set("surface", "metrics", "auroc", to=0.123)),
    Forgery("a metric not planned", "surface", sections=lambda p: p["surface"]["metrics"].update(rmse=0.5)),
    Forgery("text as self-reported", "surface", sections=_set("surface", "self_reported", to={"note": "x"})),
    Forgery("no artifacts told", "surface", sections=_set("surface", "artifacts", to=[])),
    Forgery("another ciphertext told", "surface", sections=_set(*_TOLD, "cipher_sha256", to="0" * 64)),
    Forgery("another digest told", "surface", sections=_set(*_TOLD, "sha256", to="0" * 64)),
    Forgery("another size told", "surface", sections=_set(*_TOLD, "bytes", to=lambda n: n + 1)),
    Forgery("other records told", "surface", sections=_set("surface", "records_bucket", to=lambda n: n - 10)),
    Forgery("other patients told", "surface", sections=_set("surface", "patients_bucket", to=10)),
    # Exactly the plan's files, at the plan's sizes, under a bound that the plan itself needs.
    Forgery("nothing released", "guard", sections=_set("guard", "released", to=[]), subjects=dict.clear),
    Forgery(
        "a file that is not planned",
        "guard",
        sections=lambda p: p["guard"]["released"].append({"name": "r.csv", "sha256": "0" * 64, "bytes": 9}),
        subjects=lambda s: s.update({"artifact:r.csv": "0" * 64, "ciphertext:r.csv": "0" * 64}),
    ),
    Forgery("weights of another size", "guard", sections=lambda p: _weights(p).update(bytes=1)),
    Forgery("metrics too large", "guard", sections=_set("guard", "released", 0, "bytes", to=10**5)),
    Forgery(
        "no covert bound", "guard", _set("guard", "covert_bound_bits", to=0), _set("covert_bound_bits", to=0)
    ),
    Forgery("a larger bound than the guard's", "guard", receipt=_set("covert_bound_bits", to=2**50)),
    Forgery("no records", "metering", receipt=lambda r: r["usage"].update(records=0, patients=0)),
    Forgery("no patients", "metering", receipt=_set("usage", "patients", to=0)),
    Forgery("patients outside the buckets", "metering", receipt=_set("usage", "patients", to=7)),
    Forgery("a lower cap", "metering", receipt=lambda r: r["usage"].update(cap=r["usage"]["records"])),
    Forgery("other buckets", "metering", receipt=lambda r: r["usage"].update(bucket=1000, records=1000)),
    Forgery("buckets of one", "metering", receipt=_set("usage", "bucket", to=1)),
    Forgery("invented probes", "seal", receipt=_set("airgap", "probes", to={"fine": "unreachable"})),
    Forgery("one probe more", "seal", receipt=_set("airgap", "probes", "wifi", to="unreachable")),
    Forgery("one probe less", "seal", receipt=lambda r: r["airgap"]["probes"].pop("ipv6")),
    Forgery("neither interface nor waiver", "receipt", receipt=_set("airgap", "waiver", to=None)),
    Forgery("interface and waiver", "receipt", receipt=_set("airgap", "interface", to="eth0")),
    Forgery("bytes that left while sealed", "receipt", receipt=_set("airgap", "wan_bytes_sent", to=1)),
    Forgery("a severed WAN that nobody probed", "seal", receipt=lambda r: r["airgap"].update(_SEVERED)),
    Forgery("no walls", "seal", receipt=_set("sandbox", "walls", to={})),
    Forgery("no known sandbox", "seal", receipt=lambda r: r.update(sandbox={"driver": "none", "walls": {}})),
    Forgery("a wall that is empty", "seal", receipt=_set("sandbox", "walls", "seccomp", to="")),
    Forgery("the walls of another sandbox", "seal", receipt=_set("sandbox", "walls", "driver", to="none")),
)
