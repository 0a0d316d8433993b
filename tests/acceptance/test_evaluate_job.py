"""`kind: evaluate`: a model that a company brings is measured on real patients; only the numbers leave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from rapha.cli.demo import _report
from rapha.evidence import canonical, dsse
from rapha.evidence.verify import verify
from rapha.node import journal
from rapha.node.pipeline import GATES
from rapha.researcher.project import Project
from rapha.researcher.signing import SignedJob
from rapha.runtime import base_model
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.units import parse_bytes
from rapha.testing import forge
from rapha.testing import stack as stacks
from rapha.testing.forge import Forgery
from rapha.testing.killer import KILLER
from rapha.testing.stack import Delivered, Stack

BUCKET = 10
RECORDS = 7874
"""Of the dataset."""
READ_ALL = """
import numpy as np
from rapha_trainer import RaphaDataLoader, release

for batch in RaphaDataLoader(batch_size=512, split="test"):
    release.predictions(np.zeros((len(batch["age"]), 1), np.float32))
"""
READ_NOTHING = """
import numpy as np
from rapha_trainer import release

release.predictions(np.zeros((1518, 1), np.float32))
"""
MORE = "release.predictions(np.zeros((1, 1), np.float32))\n"
TRAIN_TOO = 'next(iter(RaphaDataLoader(split="train")))\n'
FINE_TUNE = """
import numpy as np
from pathlib import Path
from safetensors.numpy import load_file
from rapha_trainer import RaphaDataLoader, release

base = load_file("/rapha/in/base.safetensors")
ages = np.concatenate([np.array(batch["age"]) for batch in RaphaDataLoader(batch_size=512)])
release.weights({"weight": base["weight"], "bias": base["bias"] - np.float32(ages.mean() * 0)})
try:
    open("/rapha/in/base.safetensors", "wb")
except OSError:
    pass
else:
    raise SystemExit("the base can be written")
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("evaluate")
    with (
        stacks.stack(root, "evaluate") as stack,
        stacks.node(stack.world.node),
        stacks.people(stack.world),
    ):
        yield stack


@pytest.fixture(scope="module")
def evaluated(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return stacks.deliver(running, tmp_path_factory.mktemp("evaluated"))


def entries(stack: Stack, job: str, event: str) -> list[dict[str, Any]]:
    return [dict(entry.data) for entry in stack.journal(job) if entry.event == event]


def receipt(delivered: Delivered) -> Any:
    return dsse.unverified_predicate(canonical.loads(delivered.bundle)["receipt"])


def test_every_gate_passed_and_the_bundle_verifies(running: Stack, evaluated: Delivered) -> None:
    passed = [e["gate"] for e in entries(running, evaluated.job, "gate") if e["verdict"] == "passed"]
    assert tuple(passed) == GATES
    result = verify(evaluated.bundle, running.trust, datetime.now(UTC))
    assert result.ok, result.steps
    base = running.world.project.load().model.base
    assert any(f"SHA-256 {base}" in line for line in result.proves)
    assert not any("rebuilt" in line for line in result.proves), "nothing was"


def test_only_the_metrics_left(running: Stack, evaluated: Delivered) -> None:
    assert [path.name for path in (evaluated.out / "artifacts").iterdir()] == ["metrics.json"]
    section = canonical.loads(evaluated.bundle)["guard"]
    assert [released["name"] for released in section["released"]] == ["metrics.json"]
    assert {check["verdict"] for check in section["checks"]} == {"not_run"}
    assert receipt(evaluated)["job"]["kind"] == "evaluate"
    assert receipt(evaluated)["covert_bound_bits"] < 400


def test_the_model_beats_chance_on_patients_it_never_saw(evaluated: Delivered) -> None:
    metrics = json.loads((evaluated.out / "artifacts" / "metrics.json").read_bytes())
    assert metrics["self_reported"] == {}
    trusted = metrics["trusted"]
    # Chance is the baseline. One risk for everybody has a Brier score of about 0.107, give or take the split.
    assert 0.5 < trusted["auroc.low"] <= trusted["auroc"] <= trusted["auroc.high"]
    assert trusted["brier"] < 0.115
    assert len([name for name in trusted if name.startswith("roc.")]) == 9


def test_exactly_the_held_out_records_were_counted(running: Stack, evaluated: Delivered) -> None:
    (counted,) = entries(running, evaluated.job, "counted")
    funnel = receipt(evaluated)["dataset"]["funnel"]
    assert funnel["used"] == counted["records"] - counted["records"] % BUCKET
    assert counted["records"] < 0.25 * RECORDS, "a fifth of the patients is held out"
    assert funnel["matched"] < counted["records"] + BUCKET, "nobody else is counted"


def test_the_report_says_that_nothing_was_trained(
    running: Stack, evaluated: Delivered, tmp_path: Path
) -> None:
    (tmp_path / "artifacts").mkdir()
    kept = (evaluated.out / "artifacts" / "metrics.json").read_bytes()
    (tmp_path / "artifacts" / "metrics.json").write_bytes(kept)
    result = verify(evaluated.bundle, running.trust, datetime.now(UTC))
    _report(tmp_path, running.world.node, evaluated.bundle, result, "evaluate")
    html = (tmp_path / "report.html").read_text()
    assert "nothing was trained, and the model did not leave" in html
    assert "that weights encode patient data" not in html
    assert "No weights left" in html


def _passed(n: int) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        next(c for c in parts["guard"]["checks"] if c["n"] == n)["verdict"] = "pass"

    return change


def _weights_too(parts: dict[str, Any]) -> None:
    parts["guard"]["released"].append({"name": "model.safetensors", "sha256": "0" * 64, "bytes": 8})


def _more_checks(parts: dict[str, Any]) -> None:
    parts["guard"]["checks"].append({"n": 8, "id": "leakage", "verdict": "pass"})


PROMISED = {
    **{"epsilon": 1.0, "delta": 1e-6, "unit": "patient", "mechanism": "dp-sgd", "noise_multiplier": 1.0},
    **{"sample_rate": 0.1, "steps": 10, "clip": 1.0, "accountant": "rdp"},
}
FORGERIES = (
    Forgery("called a training", "receipt", receipt=lambda r: r["job"].update(kind="train")),
    *(Forgery(f"check {n} told as passed", "guard", sections=_passed(n)) for n in range(1, 8)),
    Forgery("a leakage test told as passed", "guard", sections=_more_checks),
    Forgery(
        "a model that left",
        "guard",
        sections=_weights_too,
        subjects=lambda s: s.update(
            {"artifact:model.safetensors": "0" * 64, "ciphertext:model.safetensors": "0" * 64}
        ),
    ),
    Forgery("a narrower release", "guard", receipt=lambda r: r.update(released="metrics")),
    Forgery("a guarantee", "guard", receipt=lambda r: r.update(guarantee=PROMISED)),
    Forgery("a better number", "surface", sections=lambda p: p["surface"]["metrics"].update(auroc=0.99)),
    Forgery("a number not planned", "surface", sections=lambda p: p["surface"]["metrics"].update(rmse=0.5)),
)


def test_a_node_that_lies_about_an_evaluation_is_caught(running: Stack, evaluated: Delivered) -> None:
    missed = {}
    for forgery in (forge.NOTHING, *FORGERIES):
        data = forge.by_the_node(running.world, evaluated.bundle, forgery)
        result = verify(data, running.trust, datetime.now(UTC))
        step = next((s.id for s in result.steps if s.verdict == "fail"), "")
        if step != forgery.step:
            missed[forgery.name] = step
    assert not missed


@dataclass(frozen=True)
class Bad:
    """A way of cheating, and the code that it must end in."""

    name: str
    code: str
    predict: str
    job: Callable[[str], str] = str


def _shorter(text: str) -> str:
    assert "wall_clock: 5m" in text
    return text.replace("wall_clock: 5m", "wall_clock: 3s")


ATTACKS = (
    Bad("reads the train split", "job.startup", READ_ALL.replace('"test"', '"train"')),
    Bad("reads the labels", "job.failed", READ_ALL.replace('"age"', '"died_within_5y"')),
    Bad("predicts without reading", "job.no_records", READ_NOTHING),
    Bad(
        "predicts what it did not read",
        "job.outputs",
        READ_ALL + MORE.replace("release", "    break\nrelease"),
    ),
    Bad("never ends", "job.time", READ_ALL + "while True: pass\n", _shorter),
)
MORE_ATTACKS = (
    Bad("predicts one too many", "job.outputs", READ_ALL + MORE),
    Bad("writes a file more", "job.outputs", READ_ALL + "open('/rapha/out/more', 'w').write('x')\n"),
    Bad("reads the train split afterwards", "job.failed", READ_ALL + TRAIN_TOO),
    Bad("does nothing", "job.no_records", "import rapha_trainer\n"),
    Bad("writes weights", "job.outputs", READ_ALL + "open('/rapha/out/model.safetensors', 'w').write('x')\n"),
    Bad("fails after records", "job.failed", READ_ALL + "raise SystemExit(1)\n"),
    Bad(
        "predicts NaN",
        "job.outputs",
        READ_ALL + "open('/rapha/out/predictions.f32', 'r+b').write(b'\\xff' * 4)\n",
    ),
)


@pytest.fixture
def project(running: Stack, tmp_path: Path) -> Project:
    return running.copy_project(tmp_path / "job")


@pytest.mark.parametrize("bad", ATTACKS, ids=lambda b: b.name)
def test_a_predict_that_cheats_ends_in_its_code(running: Stack, project: Project, bad: Bad) -> None:
    _ends(running, project, bad)


@pytest.mark.slow
@pytest.mark.parametrize("bad", MORE_ATTACKS, ids=lambda b: b.name)
def test_a_predict_that_cheats_otherwise_ends_so_too(running: Stack, project: Project, bad: Bad) -> None:
    _ends(running, project, bad)


def _ends(running: Stack, project: Project, bad: Bad) -> None:
    (project.folder / "code" / "predict.py").write_text(bad.predict)
    project.file.write_text(bad.job(project.file.read_text()))
    signed = running.submit(project)
    assert _end(running, signed) == bad.code
    told = running.client.get(signed.id)
    if not REGISTRY[bad.code].depends_on_records and bad.code != "job.startup":
        assert not told.get("detail")
    with pytest.raises(Refused):
        running.client.bundle(signed.id)


def _base(project: Project, data: bytes, *names: str) -> None:
    """Put another model into the job, and its digest into job.yaml."""
    code, digest = project.folder / "code", project.load().model.base
    (code / "gompertz.safetensors").unlink()
    for name in names:
        (code / name).write_bytes(data)
    text = project.file.read_text().replace(str(digest), hashlib.sha256(data).hexdigest())
    project.file.write_text(text)


GOOD = save({"bias": np.zeros(1, np.float32), "weight": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("code", "data", "names"),
    [
        ("image.base_missing", GOOD, ["a.safetensors", "b.safetensors"]),
        ("image.base_invalid", pickle.dumps(np.zeros(4)), ["m.safetensors"]),
    ],
    ids=["twice", "a pickle"],
)
def test_a_base_that_is_none_is_refused_at_home_and_at_the_node(
    running: Stack,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    data: bytes,
    names: list[str],
) -> None:
    _base(project, data, *names)
    with pytest.raises(Refused) as caught:
        project.build()
    assert caught.value.code == code
    # Whoever changed their own client gets the same answer from the node.
    for check in ("find", "find_in"):
        monkeypatch.setattr(base_model, check, lambda files, digest: None)
    signed = running.submit(project)
    assert _end(running, signed) == code
    assert running.client.get(signed.id)["detail"]


def test_a_base_that_is_swapped_after_signing_is_refused(
    running: Stack, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.build()
    signed = project.sign(running.key, "demo")
    (project.folder / "code" / "gompertz.safetensors").write_bytes(GOOD)
    monkeypatch.setattr(base_model, "find", lambda files, digest: None)
    project.build()
    running.client.submit(signed.job, signed.image, project.pack())
    assert _end(running, signed) == "image.digest_mismatch"


def test_a_job_may_train_on_from_a_base(running: Stack, project: Project, tmp_path: Path) -> None:
    (project.folder / "code" / "train.py").write_text(FINE_TUNE)
    tensor = "{name: %s, dtype: F32, shape: [%d], min: -16.0, max: 16.0}"
    plan = f"  weights: {{file: model.safetensors, release_dtype: bf16, tensors: [{tensor % ('bias', 1)}, "
    text = project.file.read_text()
    for old, new in (
        ("kind: evaluate", "kind: train"),
        ("predict: [", "entrypoint: [python3, train.py]\npredict: ["),
        ("outputs:\n", f"outputs:\n{plan}{tensor % ('weight', 2)}]}}\n"),
        ("max_records: 2000", "max_records: 8000"),
        ("memory: 1GiB", "memory: 2GiB"),
    ):
        assert old in text
        text = text.replace(old, new)
    project.file.write_text(text)
    predict = project.folder / "code" / "predict.py"
    body = predict.read_text()
    start = body.index("    data = path.read_bytes()")
    loads = (
        "    from safetensors.numpy import load_file\n\n    return load_file('/rapha/in/base.safetensors')\n"
    )
    predict.write_text(body[:start] + loads + body[body.index("\n\ndef probabilities") :])
    signed = running.submit(project)
    assert _end(running, signed) == ""
    running.fetch(signed, tmp_path / "out")
    assert (tmp_path / "out" / "artifacts" / "model.safetensors").stat().st_size < parse_bytes("1KiB")
    assert load_file(project.folder / "code" / "gompertz.safetensors")["bias"] < -8


def test_killed_in_the_middle_nothing_is_released(tmp_path: Path) -> None:
    with stacks.stack(tmp_path / "world", "evaluate") as stack, stacks.people(stack.world):
        os.environ["KILL_AT"] = "gate/train/passed"
        try:
            with stacks.node(stack.world.node, (sys.executable, "-c", KILLER)) as child:
                signed = stack.submit()
                thread = threading.Thread(target=_end, args=(stack, signed))
                thread.start()
                assert child.wait(timeout=60) == -9
        finally:
            del os.environ["KILL_AT"]
        with stacks.node(stack.world.node):
            thread.join(timeout=60)
            last = stack.client.get(signed.id)
        assert (last["state"], last["code"]) == ("failed", "node.restarted")
        state = stack.world.node / "state"
        assert not [path for name in ("jobs", "outbox", "desk") for path in (state / name).glob("*")]
        assert (state / "meters" / f"{signed.id}.journal").stat().st_size > 0, "counts are kept"
        charged = [e for e in journal.read(state / "journal.jsonl") if e.event == "ended"]
        assert not charged or charged[-1].data["surface"]["records_bucket"] > 0


def _end(stack: Stack, signed: SignedJob) -> str:
    """The code that a job ended in; empty if it was delivered."""
    try:
        last = stack.follow(signed)
    except Refused as refused:
        with contextlib.suppress(Refused):
            stack.client.cancel(signed.id)
        return refused.code
    return str(last.get("code") or "")
