from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.evidence.steps.parties import open_job
from rapha.researcher import project as projects
from rapha.researcher.project import Project
from rapha.spec.refusals import Refused

KEY = SigningKey.generate()


def code(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "job"
    project = projects.init("tabular", folder)
    project.build()
    project.sign(KEY, "demo")
    return folder


@pytest.fixture
def project(signed: Path, tmp_path: Path) -> Project:
    shutil.copytree(signed, tmp_path / "job")
    return Project(tmp_path / "job")


def edit(project: Project, old: str, new: str) -> None:
    text = project.file.read_text()
    assert old in text
    project.file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("template", projects.TEMPLATES)
def test_every_template_is_a_good_job_with_a_key_of_its_own(tmp_path: Path, template: str) -> None:
    project = projects.init(template, tmp_path / "a")
    other = projects.init(template, tmp_path / "b")
    file = project.load()
    assert (project.folder / file.recipient).read_text() != (other.folder / file.recipient).read_text()
    file.to_job(
        image_digest="sha256:" + "ab" * 32, recipient=(project.folder / file.recipient).read_text().strip()
    )


def test_a_template_is_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert code(lambda: projects.init("tabular", tmp_path)) == "policy.conflict"
    assert code(lambda: projects.init("../tabular", tmp_path / "new")) == "schema.field_invalid"


def test_what_is_signed_is_the_job_as_written(project: Project) -> None:
    found = project.signed()
    statement = dsse.verify(found.job, [KEY.verify_key], kind="job", profile="demo", audience=AUDIENCE_NODE)
    job, job_id = open_job(statement)
    assert job_id == found.id
    assert job.name == project.load().name
    assert project.sign(KEY, "demo").id != found.id


def test_the_statement_about_the_image_travels_inside_its_layout(project: Project) -> None:
    from rapha.runtime.image import inspect

    found = project.sign(KEY, "demo")
    image = inspect(project.folder / project.load().image)
    assert found.image_bytes in image.referrers
    assert (
        open_job(
            dsse.verify(found.job, [KEY.verify_key], kind="job", profile="demo", audience=AUDIENCE_NODE)
        )[0].image
        == image.digest
    )


def test_commands_that_changed_since_the_build_refuse(project: Project) -> None:
    edit(project, "train.py", "other.py")
    assert code(lambda: project.sign(KEY, "demo")) == "image.entrypoint_missing"


def test_an_image_that_is_not_there_refuses(project: Project) -> None:
    shutil.rmtree(project.folder / project.load().image)
    assert code(lambda: project.sign(KEY, "demo")).startswith("image.")


def recipient(project: Project) -> Path:
    return project.folder / project.load().recipient


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


RECIPIENTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "a folder": _folder,
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(b"\xff\xfe"),
    "a signing key": lambda path: path.write_text(KEY.verify_key.to_text()),
    "a point of small order": lambda path: path.write_text("A" * 43 + "="),
}


@pytest.mark.parametrize("change", RECIPIENTS.values(), ids=RECIPIENTS.keys())
def test_a_recipient_that_is_no_public_key_refuses(
    project: Project, change: Callable[[Path], object]
) -> None:
    change(recipient(project))
    assert code(lambda: project.sign(KEY, "demo")) == "schema.field_invalid"


def test_the_private_key_is_never_signed_as_the_recipient(project: Project) -> None:
    edit(project, "results.hpke.pub", "results.hpke")
    before = project.signed_file.read_bytes()
    secret = recipient(project).read_text().strip()
    assert code(lambda: project.sign(KEY, "demo")) == "schema.field_invalid"
    assert project.signed_file.read_bytes() == before
    assert secret not in before.decode()


def change(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value.update(fields)


SIGNED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another id": change(id="00" * 32),
    "an id that is a number": change(id=1),
    "no job": change(job=None),
    "a job that is a list": change(job=[]),
    "an unsigned field": change(note="x"),
    "another statement": lambda value: value.update(job=value["image"]),
    "no image": lambda value: value.pop("image"),
}


@pytest.mark.parametrize("mutate", SIGNED.values(), ids=SIGNED.keys())
def test_a_changed_signed_file_refuses(project: Project, mutate: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(project.signed_file.read_text())
    mutate(value)
    project.signed_file.write_text(json.dumps(value))
    assert code(project.signed) == "schema.envelope"


FILES = [b"", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"id":1,"id":1}']


@pytest.mark.parametrize("data", FILES)
def test_garbage_in_place_of_files_refuses(project: Project, data: bytes) -> None:
    project.signed_file.write_bytes(data)
    assert code(project.signed) in ("schema.envelope", "schema.json")
    project.file.write_bytes(data)
    assert code(project.load).startswith("schema.")


def test_missing_files_refuse(tmp_path: Path) -> None:
    empty = Project(tmp_path)
    assert code(empty.load) == "schema.yaml"
    assert code(empty.signed) == "schema.envelope"
    assert code(empty.build) == "schema.yaml"
