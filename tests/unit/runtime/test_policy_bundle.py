"""Reading a policy set, which may come from anyone who can write a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rapha.runtime.policy.bundle import DEFAULT, MAX_FILE_BYTES, MAX_FILES, Bundle
from rapha.spec.refusals import Refused

RULE = "package rapha.admission\n\nimport rego.v1\n\ndefault allow := false\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rule.rego").write_text(RULE)
    (tmp_path / "data.json").write_text("{}")
    return tmp_path


def test_the_shipped_set_loads_without_its_tests() -> None:
    names = [name for name, _ in Bundle.load(DEFAULT).modules]
    assert names == sorted(names)
    assert "admission.rego" in names
    assert not [name for name in names if name.endswith("_test.rego")]


def test_every_shipped_deny_rule_is_in_a_file_of_its_own_area() -> None:
    areas = {name for name, source in Bundle.load(DEFAULT).modules if re.search(r"(?m)^deny", source)}
    wanted = ["dataset", "purpose", "consent", "outputs", "network", "assurance", "budget", "scan"]
    assert areas >= {f"{area}.rego" for area in wanted}


def test_the_digest_names_every_byte_in_force(folder: Path) -> None:
    digests = [Bundle.load(folder).digest]
    for name, text in (("rule.rego", RULE + "\n"), ("data.json", "{ }"), ("more.rego", RULE)):
        (folder / name).write_text(text)
        digests.append(Bundle.load(folder).digest)
    (folder / "more.rego").rename(folder / "other.rego")
    digests.append(Bundle.load(folder).digest)
    assert len(set(digests)) == len(digests)


def test_the_digest_is_of_nothing_else(folder: Path) -> None:
    before = Bundle.load(folder)
    (folder / "rule_test.rego").write_text("package x\n")
    (folder / "README.md").write_text("words")
    (folder / "admissible.json").write_text("{}")
    assert Bundle.load(folder) == before


def test_no_data_is_an_empty_object(folder: Path) -> None:
    (folder / "data.json").unlink()
    assert Bundle.load(folder).data == "{}"


BAD: dict[str, tuple[str, bytes]] = {
    "a NUL, after which C strings end": ("rule.rego", RULE.encode() + b"\x00allow := true"),
    "not UTF-8": ("rule.rego", RULE.encode() + b"# \xff"),
    "too large": ("rule.rego", RULE.encode() + b"#" * MAX_FILE_BYTES),
    "no package": ("rule.rego", b"allow := true\n"),
    "a package in a comment only": ("rule.rego", b"# package rapha.admission\nallow := true\n"),
    "a package elsewhere": ("rule.rego", b"package system\n"),
    "a package with a name that only starts alike": ("rule.rego", b"package raphael.admission\n"),
    "a rule that reads the clock": ("rule.rego", RULE.encode() + b"allow if time.now_ns() > 1\n"),
    "a rule that rolls dice": ("rule.rego", RULE.encode() + b'allow if rand . intn("a", 2) == 1\n'),
    "a rule that reads the environment": ("rule.rego", RULE.encode() + b"x := opa.runtime()\n"),
    "a rule that asks a server": ("rule.rego", RULE.encode() + b"x := http.send({})\n"),
    "data over the rules": ("data.json", b'{"rapha": {"admission": {"allow": true}}}'),
    "data with a key twice": ("data.json", b'{"a": 1, "a": 2}'),
    "data that is no object": ("data.json", b"[]"),
    "data that is not JSON": ("data.json", b"{a: 1}"),
    "data that is NaN": ("data.json", b'{"a": NaN}'),
    "data nested too deep": ("data.json", b'{"a":' * 100 + b"1" + b"}" * 100),
    "a module in capitals": ("Rule.REGO", RULE.encode()),
    "a backup of a module": ("rule.rego~", RULE.encode()),
    "data in YAML": ("data.yaml", b"a: 1"),
    "a compiled set": ("bundle.tar.gz", b""),
    "a hidden file": (".rule.rego", RULE.encode()),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_refuses(folder: Path, name: str) -> None:
    file, content = BAD[name]
    (folder / file).write_bytes(content)
    with pytest.raises(Refused) as refused:
        Bundle.load(folder)
    assert refused.value.code == "policy.error"


def test_a_link_refuses(folder: Path) -> None:
    (folder / "linked.rego").symlink_to(folder / "rule.rego")
    with pytest.raises(Refused, match=r"policy\.error"):
        Bundle.load(folder)


def test_a_fifo_refuses_without_blocking(folder: Path) -> None:
    os.mkfifo(folder / "pipe.rego")
    with pytest.raises(Refused, match=r"policy\.error"):
        Bundle.load(folder)


def test_a_folder_inside_refuses(folder: Path) -> None:
    (folder / "more.rego").mkdir()
    with pytest.raises(Refused, match=r"policy\.error"):
        Bundle.load(folder)


def test_a_folder_without_a_rule_refuses(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(Refused, match="no rule"):
        Bundle.load(tmp_path)


def test_an_absent_folder_refuses(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"policy\.error"):
        Bundle.load(tmp_path / "none")


def test_too_many_files_refuse(folder: Path) -> None:
    for number in range(MAX_FILES):
        (folder / f"r{number}.rego").write_text(RULE)
    with pytest.raises(Refused, match="more than"):
        Bundle.load(folder)
