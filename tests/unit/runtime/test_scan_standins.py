"""What runs in a full image without being named: replaced modules and libraries, links, variables."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from rapha.runtime.image import File, Image
from rapha.runtime.scan import ScanReport, refusals, scan
from rapha.runtime.scan.blob import Blob, Memory
from rapha.runtime.scan.natives import needed

PLAIN = b"print(1)\n"
SOCKET = b"import socket\n"
EVIL = b"#!/bin/sh\ncurl http://h\n"
NATIVE = b"\x7fELF"
COMPILED = b"\xa7\r\r\n" + bytes(40)
LIB = "usr/lib/python3.11/"
SITE = LIB + "site-packages/"
RUN = ("python3", "train.py")
BASE: dict[str, bytes] = {
    "usr/bin/python3.11": NATIVE,
    "usr/bin/env": NATIVE,
    "usr/bin/tini": NATIVE,
    "bin/dash": NATIVE,
    "bin/bash": NATIVE,
    LIB + "os.py": SOCKET,
    LIB + "encodings/__init__.py": b"",
    SITE + "torch/__init__.py": b"import typing_extensions, sympy as s\nfrom opt_einsum import x\n",
    SITE + "torch/nn/__init__.py": b"",
    SITE + "sympy/__init__.py": b"def f():\n    from mpmath import mp\n",
}


class Named:
    """A file of an image that nobody may run."""

    def __init__(self, data: bytes) -> None:
        self.inner = Memory(data)
        self.size = len(data)
        self.executable = False

    def open(self) -> Any:
        return self.inner.open()


def judged(
    files: Mapping[str, Any],
    argv: tuple[str, ...] = RUN,
    base: Mapping[str, bytes] = BASE,
    path: tuple[str, ...] = (),
    links: Mapping[str, str] | None = None,
) -> ScanReport:
    own = {"app/train.py": PLAIN, **files}
    held = {p: data if isinstance(data, Named) else Memory(data) for p, data in {**base, **own}.items()}
    image = Image(
        digest="sha256:" + "0" * 64,
        entrypoint=argv,
        predict=None,
        runtime=None,
        workdir="/app",
        files=cast(Mapping[str, File], dict(sorted(held.items()))),
        tree=Path("/none"),
        links={"usr/bin/python3": "python3.11", "bin/sh": "dash", **(links or {})},
        added=frozenset(own) | frozenset(links or {}),
        base=("sha256:" + "1" * 64,),
        path=path,
    )
    return scan(image)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("notes.txt", "x")
    return out.getvalue()


def cache(name: bytes, path: bytes) -> bytes:
    return b"glibc-ld.so.cache1.1" + struct.pack("<2I", 1, 0) + bytes(20) + name + b"\0" + path + b"\0"


REPLACED: dict[str, dict[str, bytes]] = {
    "a codec that start-up imports": {LIB + "encodings/utf_8.py": SOCKET},
    "the module that start-up runs": {LIB + "site.py": PLAIN},
    "an extension module": {LIB + "lib-dynload/_struct.cpython-311-x86_64-linux-gnu.so": NATIVE},
    "an extension before a module": {LIB + "struct.cpython-311-x86_64-linux-gnu.so": NATIVE},
    "a package before a module": {LIB + "struct/__init__.py": PLAIN},
    "bytecode": {LIB + "__pycache__/os.cpython-311.pyc": COMPILED},
    "bytecode without source": {LIB + "encodings.pyc": COMPILED},
    "the zipped library": {"usr/lib/python311.zip": zipped()},
    "rapha_trainer": {SITE + "rapha_trainer/__init__.py": PLAIN},
    "a preload": {"etc/ld.so.preload": b"/opt/e.so", "opt/e.so": NATIVE},
    "a cache": {"etc/ld.so.cache": cache(b"libz.so.1", b"/opt/e.so.1")},
    "the C library": {"lib/x86_64-linux-gnu/libc.so.6": NATIVE},
    "the loader": {"lib64/ld-linux-x86-64.so.2": NATIVE},
    "a capability's folder": {"lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/libm.so.6": NATIVE},
    "a converter": {"usr/lib/x86_64-linux-gnu/gconv/E.so": NATIVE},
    "the interpreter, by a script": {"usr/local/bin/python3": EVIL},
    "the shell, by a script": {"usr/local/bin/bash": b"#!/usr/bin/python3\nimport socket\n"},
    "tini, by a script": {"usr/local/bin/tini": EVIL},
    "env, by a script": {"usr/local/bin/env": EVIL},
}
ARGVS = {"the shell, by a script": ("bash", "-c", "true"), "tini, by a script": ("tini", "--", *RUN)}
ARGVS["env, by a script"] = ("env", *RUN)


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_loaded_first_may_not_be_replaced(name: str) -> None:
    assert refusals(judged(REPLACED[name], ARGVS.get(name, RUN)))


@pytest.mark.parametrize(
    "name", ["torch/nn/functional", "typing_extensions", "opt_einsum/__init__", "mpmath"]
)
def test_what_a_package_of_the_base_imports_is_reached_with_it(name: str) -> None:
    files = {f"{SITE}{name}.py": SOCKET}
    assert refusals(judged({**files, "app/train.py": b"import torch\n"}))
    assert not refusals(judged(files))


def test_a_package_that_nothing_imports_only_warns() -> None:
    assert not refusals(judged({SITE + "pip/__init__.py": SOCKET, "app/train.py": b"import torch\n"}))


@pytest.mark.parametrize(
    ("link", "target", "file"),
    [
        ("app/helper.py", "/opt/data.txt", "opt/data.txt"),
        ("app/helper.py", "../opt/data.txt", "opt/data.txt"),
        ("app/helper", "/opt/x", "opt/x/__init__.py"),
        (SITE + "helper", "/opt/x", "opt/x/__init__.py"),
        (SITE.rstrip("/").replace("3.11", "3.12"), "/opt/x", "opt/x/helper.py"),
        ("app/helper.cpython-311-x86_64-linux-gnu.so", "/opt/data", "opt/data"),
    ],
)
def test_imports_follow_links(link: str, target: str, file: str) -> None:
    hostile = NATIVE if ".so" in link else SOCKET
    base = {**BASE, SITE.replace("3.11", "3.12") + "../x.py": b""} if "3.12" in link else BASE
    files = {file: hostile, "app/train.py": b"import helper\n"}
    assert refusals(judged(files, base=base, links={link: target}))


def test_links_that_loop_end() -> None:
    links = {f"opt/{a}": f"/opt/{b}" for a, b in zip("abcd", "bcda", strict=True)}
    assert not refusals(judged({"opt/x/y.py": PLAIN}, links={**links, "opt/z": "/opt/x"}))


@pytest.mark.parametrize("target", [".", "/opt/x", "/opt", "/"])
def test_a_link_that_gives_code_names_without_end_refuses(target: str) -> None:
    files = {"opt/x/y.py": SOCKET, "app/train.py": b"import self.self.y\n"}
    assert refusals(judged(files, links={"opt/x/self": target, "app/self": "/opt/x"}))


def test_links_with_too_many_names_refuse() -> None:
    files = {f"opt/x/{number}.py": PLAIN for number in range(300)}
    links = {f"opt/l{number}": "/opt/x" for number in range(400)}
    assert any("more names" in found.reason for found in refusals(judged(files, links=links)))


OTHER = {"opt/p/foo.py": SOCKET, "app/train.py": b"import foo\n", "opt/e.so": NATIVE}
VARIABLES: dict[str, tuple[str, ...]] = {
    "PYTHONPATH": ("env", "PYTHONPATH=/opt/p", *RUN),
    "LD_PRELOAD": ("env", "LD_PRELOAD=/opt/e.so", *RUN),
    "LD_AUDIT": ("env", "LD_AUDIT=/opt/e.so", *RUN),
    "PATH": ("env", "PATH=/opt/p", *RUN),
    "exported": ("sh", "-c", "export PYTHONPATH=/opt/p; python3 train.py"),
    "exported, hidden": ("sh", "-c", "P=/opt/p; export PYTHONPATH=$P; python3 train.py"),
    "a prefix": ("sh", "-c", "PYTHONPATH=/opt/p python3 train.py"),
    "preloaded": ("sh", "-c", "LD_PRELOAD=/opt/e.so python3 train.py"),
    "BASH_ENV": ("bash", "-c", "BASH_ENV=/opt/rc bash train.sh"),
    "home": ("sh", "-c", "PYTHONHOME=/opt python3 train.py"),
    "bytecode": ("python3", "-X", "pycache_prefix=/opt/c", "train.py"),
    "bytecode, joined": ("python3", "-Xpycache_prefix=/opt/c", "train.py"),
    "a warning's class": ("python3", "-W", "error::foo.X", "train.py"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_that_load_other_code_are_followed_or_refuse(name: str) -> None:
    assert refusals(judged(OTHER, VARIABLES[name]))


def test_variables_and_options_that_load_nothing_are_fine() -> None:
    plain = "export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2\ncd /app\nexport PYTHONPATH=/app/src:$PYTHONPATH\n"
    files = {"app/run.sh": plain.encode() + b"python3 -u -X importtime -W ignore train.py\n"}
    assert not refusals(judged({**files, "app/src/a.py": PLAIN}, ("bash", "-o", "errexit", "run.sh")))


@pytest.mark.parametrize("move", ["cd /opt", 'cd "$X"', "pushd /opt"])
def test_a_script_that_changes_folders_is_followed_into_all_of_them(move: str) -> None:
    assert refusals(judged({"opt/train.py": SOCKET}, ("sh", "-c", f"{move}\npython3 train.py")))


def test_a_login_shell_reads_its_profile() -> None:
    files = {"etc/profile.d/x.sh": b"curl http://h\n"}
    assert refusals(judged(files, ("bash", "-lc", "python3 train.py")))
    assert not refusals(judged(files, ("bash", "-c", "python3 train.py")))


def test_a_shell_option_with_a_value_does_not_hide_the_script() -> None:
    files = {"app/run.sh": b"curl http://h\n", "app/extglob": b""}
    assert refusals(judged(files, ("bash", "-O", "extglob", "run.sh")))


def test_a_file_of_path_that_nobody_may_run_is_passed_over() -> None:
    files = {"app/a/python3": Named(b"#!/usr/bin/python3\n"), "app/b/python3": EVIL}
    assert refusals(judged(files, path=("/app/a", "/app/b", "/usr/bin")))


def test_a_first_line_may_name_the_submitters_own_interpreter() -> None:
    files = {"app/run": b"#!/app/python-own\nprint(1)\n", "app/python-own": NATIVE}
    assert refusals(judged(files, ("/app/run",)))


def test_a_folder_that_looks_like_a_library_hides_no_shadowing() -> None:
    files = {"app/lib/python3/train.py": b"import json\n", "app/lib/python3/json.py": PLAIN}
    assert refusals(judged(files, ("python3", "/app/lib/python3/train.py")))


def test_the_report_names_the_layers_that_were_not_judged() -> None:
    assert judged({}).base == ("sha256:" + "1" * 64,)


def test_a_library_that_the_base_loads_may_not_be_replaced() -> None:
    import pyroaring

    data = Path(pyroaring.__file__).read_bytes()
    wanted = needed(Blob("x.so", Memory(data)))
    assert wanted
    base = {**BASE, SITE + "x.so": data}
    assert refusals(judged({f"opt/{wanted[0]}": NATIVE}, base=base))
    assert refusals(judged({"opt/e": NATIVE}, base=base, links={f"opt/{wanted[0]}": "/opt/e"}))
    assert not refusals(judged({"opt/libother.so.1": NATIVE}, base=base))


SHELL_WAYS = [
    "read PYTHONPATH < /app/x; export PYTHONPATH; python3 train.py",
    "printf -v PYTHONPATH /opt/p; export PYTHONPATH; python3 train.py",
    "for PYTHONPATH in /opt/p; do export PYTHONPATH; python3 train.py; done",
    "set -a; : ${PYTHONPATH:=/opt/p}; python3 train.py",
    "getopts p LD_PRELOAD; python3 train.py",
    "X=PYTHONPATH=/opt/p; export $X; python3 train.py",
    "cp /app/e.txt /tmp/train.py; cd /tmp; python3 train.py",
    "cp /app/e.txt ~/train.py; cd; python3 train.py",
    "x=tcp; exec 3<>/dev/$x/h/80",
]


@pytest.mark.parametrize("script", SHELL_WAYS)
def test_a_script_sets_no_variable_or_folder_unseen(script: str) -> None:
    assert refusals(judged({**OTHER, "app/e.txt": SOCKET}, ("bash", "-c", script)))


def test_plug_ins_that_a_package_loads_are_reached_with_it() -> None:
    listed = b"[console_scripts]\na = tool:main\n[torch.backends]\nx = evil.sub:f\n"
    files = {SITE + "e-1.dist-info/entry_points.txt": listed, "app/train.py": b"import torch\n"}
    assert refusals(judged({**files, SITE + "evil/sub.py": SOCKET}))
    assert not refusals(judged({**files, SITE + "tool.py": SOCKET}))
