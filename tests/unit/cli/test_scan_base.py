"""`rapha scan --base`: a full image at home, judged as a node that allows its base would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rapha.cli.scan import app
from rapha.runtime.image import build, build_full

RUN = ("python3", "train.py")


def made(folder: Path, code: str, name: str) -> Path:
    source = folder / f"{name}-code"
    source.mkdir()
    (source / "train.py").write_text(code)
    return source


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base whose own code opens connections, as every interpreter does."""
    source = made(tmp_path, "", "base")
    (source / "python3").write_text("#!/bin/sh\n")
    (source / "library.py").write_text("import socket\n")
    build(source, tmp_path / "base", entrypoint=RUN, predict=None, runtime="none")
    return tmp_path / "base"


def test_only_what_is_above_the_base_is_judged(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    build_full(made(tmp_path, "import socket\n", "job"), image, base=base, entrypoint=RUN, predict=None)
    bill = tmp_path / "bill.json"
    done = CliRunner().invoke(app, [str(image), "--base", str(base), "--json", "--sbom", str(bill)])
    report = json.loads(done.stdout.splitlines()[0])
    assert len(report["base"]) == 1
    assert not any(finding["path"] == "app/library.py" for finding in report["findings"])
    assert "app/library.py" in bill.read_text()
    everything = json.loads(CliRunner().invoke(app, [str(image), "--json"]).stdout.splitlines()[0])
    assert everything["base"] == []
    assert any(finding["path"] == "app/library.py" for finding in everything["findings"])


def test_an_image_on_another_base_is_said_to_be(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build(made(tmp_path, "x = 1\n", "other"), other, entrypoint=RUN, predict=None, runtime="none")
    image = tmp_path / "image"
    build_full(made(tmp_path, "x = 2\n", "job"), image, base=other, entrypoint=RUN, predict=None)
    done = CliRunner().invoke(app, [str(image), "--base", str(base)])
    assert done.exit_code == 1
    assert "does not stand on" in done.output
