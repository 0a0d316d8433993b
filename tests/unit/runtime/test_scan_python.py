"""What code is refused and what is not: tables of hostile and of ordinary jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.image import File, Image
from rapha.runtime.scan import ScanReport, default_rules, refusals, scan
from rapha.runtime.scan.blob import Memory
from rapha.runtime.scan.collector import MAX_SOURCE, collect


def image(files: Mapping[str, str | bytes], predict: tuple[str, ...] | None = None) -> Image:
    contents = {f"app/{n}": data.encode() if isinstance(data, str) else data for n, data in files.items()}
    return Image(
        digest="sha256:" + "0" * 64,
        entrypoint=("python3", "train.py"),
        predict=predict,
        runtime="rt",
        workdir="/app",
        files=cast(Mapping[str, File], {path: Memory(data) for path, data in sorted(contents.items())}),
        tree=Path("/none"),
    )


def judged(source: str | bytes, **others: str | bytes) -> ScanReport:
    return scan(image({"train.py": source, **{f"{k}.py": v for k, v in others.items()}}))


def codes(report: ScanReport) -> set[str]:
    return {finding.rule for finding in refusals(report)}


NETWORK = "image.network_module"
DYNAMIC = "image.dynamic_code"
PROCESS = "image.subprocess"
SHADOW = "image.shadowing"
NATIVE = "image.native_code"
PICKLE = "image.pickle"
UNPARSABLE = "image.unparsable"
STARTUP = "image.startup_hook"

HOSTILE: dict[str, list[str | bytes]] = {
    NETWORK: [
        "import socket",
        "import socket as json",
        "from socket import create_connection as c",
        "import ssl, json",
        "import urllib",
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import urllib.parse\nurllib.request.urlopen('x')",
        "import http.client",
        "import requests",
        "import httpx",
        "import aiohttp",
        "import grpc",
        "import fsspec\nfsspec.open('http://x')",
        "import numpy as np\nnp.lib.npyio.DataSource().open('http://x')",
        "import websockets",
        "import paramiko",
        "import ftplib",
        "import smtplib",
        "import xmlrpc.client",
        "import boto3",
        "from multiprocessing.managers import BaseManager",
        "import multiprocessing as mp\nmp.Manager()",
        "import multiprocessing.connection",
        "import asyncio\nasyncio.open_connection('h', 1)",
        "from asyncio import open_connection",
        "from asyncio.streams import *",
        "import asyncio.streams",
        "loop.create_connection(factory, 'h', 1)",
        "import torch.distributed.rpc",
        "import torch.distributed.rpc as x",
        "from torch.distributed import rpc",
        "import torch\ntorch.distributed.rpc.init_rpc('a')",
        "import torch as t\nd = t.distributed\nd.rpc.init_rpc('a')",
        "import torch\ntorch.hub.load('a', 'b')",
        "import logging.handlers\nlogging.handlers.HTTPHandler('h', 'u')",
        "def f():\n    if x:\n        try:\n            import socket\n        except E:\n            pass",
        "class A:\n    import socket",
        "__import__('socket')",
        "__import__('so' + 'cket')",
        "__import__('tekcos'[::-1])",
        "__import__(''.join(['so', 'cket']))",
        "__import__(f\"so{'cket'}\")",
        "__import__(b'socket'.decode())",
        "import importlib\nimportlib.import_module('socket')",
        "from importlib import import_module as i\ni(name='socket')",
        "import sys\nsys.modules['socket'].socket()",
        "import rapha_trainer\nrapha_trainer.source.socket.socket()",
        "import logging.handlers as h\nh.socket.socket()",
        "import random\nrandom._socket",
        "# -*- coding: latin-1 -*-\nimport socket",
        b"\xef\xbb\xbfimport socket",
        b"# coding: utf-7\nimport +AHM-ocket\nimport socket",
        "import \uff53ocket",
        "x = lambda: __import__('socket')",
        "match 1:\n    case _:\n        import socket",
        "async def f():\n    async with a:\n        import socket",
    ],
    PROCESS: [
        "import subprocess",
        "import subprocess as s\ns.run(['ls'])",
        "import os\nos.system('ls')",
        "import os as o\no.system('ls')",
        "from os import system",
        "from os import system as s\ns('ls')",
        "from os import *\nsystem('ls')",
        "import os\nf = os.system\nf('ls')",
        "import os\nfor f in [os.popen]:\n    f('ls')",
        "import os\na, b = os, 1\na.system('ls')",
        "import os\n(x := os).system('ls')",
        "import os\ngetattr(os, 'system')('ls')",
        "import os\ngetattr(os, 'sys' + 'tem')('ls')",
        "import os\ng = getattr\ng(os, 'metsys'[::-1])('ls')",
        "import os\nvars(os)['system']('ls')",
        "import os\nos.__dict__['system']('ls')",
        "import os\nos.execv('/bin/sh', [])",
        "import os\nos.fork()",
        "import os\nos.posix_spawn('/bin/sh', [], {})",
        "import posix\nposix.system('ls')",
        "import pty",
        "import torch\ntorch.os.system('ls')",
        "import random\nrandom._os.system('ls')",
        "import sys\nsys.modules['os'].system('ls')",
        "__import__('os').system('ls')",
        "(lambda: __import__('os'))().system('ls')\n__import__('os').system('ls')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "loop.subprocess_exec(protocol, 'ls')",
    ],
    DYNAMIC: [
        "import jinja2\njinja2.Template(text).render()",
        "from sympy import sympify\nsympify(text)",
        "import sympy\nsympy.lambdify([], text)()",
        "exec('1')",
        "eval('1')",
        "compile('1', '', 'exec')",
        "x = eval\nx('1')",
        "[exec][0]('1')",
        "import builtins\nbuiltins.exec('1')",
        "from builtins import exec as e",
        "import builtins\ngetattr(builtins, 'ev' + 'al')('1')",
        "__builtins__.exec('1')",
        "__builtins__['exec']('1')",
        "globals()['__builtins__']['exec']('1')",
        "exec('1')\nfrom json import dumps as exec",
        "exec('1')\ndef exec(x):\n    pass",
        "def f(x=eval('1')):\n    pass",
        "def eval(\n    x=eval('1'),\n):\n    pass",
        "def f():\n    def g():\n        eval = 1\n    eval('1')",
        "def f(eval):\n    def g():\n        global eval\n        eval('1')",
        "[1 for eval in []]\neval('1')",
        "eval = print\ndel eval\neval('1')",
        "@exec\n@input\nclass X:\n    pass",
        "__import__(name)",
        "__import__(input())",
        "[__import__][0]('json')",
        "f = __import__",
        "import importlib\nimportlib.import_module(name)",
        "import importlib\nimportlib.import_module()",
        "import importlib.util as u\nu.spec_from_file_location('a', 'b')",
        "loader.exec_module(m)",
        "import imp",
        "import runpy\nrunpy.run_path('x')",
        "import zipimport",
        "import code",
        "import marshal",
        "import types\ntypes.FunctionType(c, {})",
        "import sys\nsys.meta_path.append(x)",
        "import sys\nsys.modules[name]",
        "import sys\nm = sys.modules\nm['os']",
        "import sys\nsys.modules.get('os')",
        "().__class__.__base__.__subclasses__()",
        "getattr((), '__subcl' + 'asses__')",
        "f.__globals__['x']",
        "import os\ngetattr(os, name)('ls')",
        "import os\ndef f(m):\n    m.system('ls')\nf(os)",
        "import os\nclass A:\n    o = os\nA.o.system('ls')",
        "import operator, os\noperator.attrgetter('system')(os)",
        "import os\nos.__getattribute__('system')('ls')",
        "import os\n{**vars(os)}['system']",
        "from os import __dict__ as d\nd.get('system')",
        "import timeit\ntimeit.timeit('1')",
        "breakpoint()",
        "import unittest.mock",
        "import sys\nsys._getframe().f_back",
    ],
    SHADOW: [
        "import rapha_trainer\nrapha_trainer.release = 1",
        "import rapha_trainer as r\nr.release.weights = print",
        "from rapha_trainer import release\nrelease.weights = print",
        "from rapha_trainer import RaphaDataLoader\nRaphaDataLoader.__iter__ = None",
        "import rapha_trainer\nsetattr(rapha_trainer.release, 'weights', print)",
        "import rapha_trainer\nsetattr(rapha_trainer, name, print)",
        "import rapha_trainer\ndel rapha_trainer.release",
        "import rapha_trainer\ndelattr(rapha_trainer, 'release')",
        "import rapha_trainer\nrapha_trainer.x += 1",
        "import rapha_trainer\nfor rapha_trainer.x in [1]:\n    pass",
        "import rapha_trainer\nrapha_trainer.__dict__['release'] = 1",
        "import rapha_trainer\nvars(rapha_trainer)['release'] = 1",
        "import rapha_trainer\nrapha_trainer.__dict__.update(release=1)",
        "import rapha_trainer\nobject.__setattr__(rapha_trainer, 'release', 1)",
        "import sys\nsys.modules['rapha_trainer'] = 1",
        "import sys\ndel sys.modules['json']",
        "import builtins\nbuiltins.open = None",
    ],
    NATIVE: [
        "import ctypes",
        "from ctypes import CDLL",
        "import cffi",
        "import numpy.ctypeslib",
        "import torch\ntorch.ops.load_library('x')",
        "from torch.utils.cpp_extension import load",
    ],
    PICKLE: [
        "import pickle\npickle.loads(b'')",
        "from pickle import Unpickler",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=maybe)",
        "import torch\ntorch.load('x', weights_only=False)",
        "import joblib\njoblib.load('x')",
        "import pandas as pd\npd.read_pickle('x')",
    ],
    STARTUP: ["import site\nsite.addsitedir('x')"],
    UNPARSABLE: [
        "def (",
        "x = " + "(" * 5000 + ")" * 5000,
        "x = " + "-" * 20_000 + "1",
        "a" + ".b" * 5000,
        "f" + "(1)" * 5000,
        "x = 1\0",
        b"\xff\xfe",
        b"# coding: no-such-codec\n",
        b"#" * (MAX_SOURCE + 1),
        "if 1:\n" + "".join(" " * n + "if 1:\n" for n in range(1, 200)) + " " * 200 + "pass",
    ],
}


@pytest.mark.parametrize(("code", "source"), [(c, s) for c, sources in HOSTILE.items() for s in sources])
def test_hostile_code_is_refused(code: str, source: str | bytes) -> None:
    report = judged(source)
    assert not report.ok
    assert code in codes(report)
    assert all(f.path == "app/train.py" and f.fix for f in report.findings if f.rule == code)


BENIGN: list[str] = [
    "'''import socket; eval(x); os.system'''\n# exec('x') subprocess pickle.loads\nprint('socket', 'exec')",
    "model.eval()\nmodel.compile()\nself.socket = net.http",
    "import torch\nmodel = torch.compile(model)\nimport re\nre.compile('x')",
    "def eval(model):\n    return eval_one(model)\n\nprint(eval(1))",
    "compile = True\nif compile:\n    pass",
    "def f(eval=True, compile=None):\n    return eval and compile",
    "def f():\n    eval = 1\n    return [eval for _ in range(3)]",
    "from sklearn.metrics import x as eval\neval(1)",
    "class Net(nn.Module):\n    def compile(self):\n        return self.exec(1)",
    "from urllib.parse import urlparse\nimport urllib.parse",
    "from http import HTTPStatus",
    "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nos.makedirs(os.path.join('a', 'b'))\nos.cpu_count()",
    "import os\nif hasattr(os, 'sched_getaffinity'):\n    n = getattr(os, 'cpu_count')()",
    "import os.path as p\np.join('a')\nfrom os import path\npath.join('a')",
    "import importlib\nimportlib.import_module('json')",
    "import importlib.metadata\nimportlib.metadata.version('torch')",
    "import torch\nopt = getattr(torch.optim, name)\ndtype = getattr(torch, d)\ngetattr(obj, name)",
    "import sys\nsys.stdout.write('x')\nsys.exit(0)\nsys.stdout = open('x')",
    "import sys\nthis = sys.modules[__name__]\nok = 'torch' in sys.modules",
    "import torch\ntorch.load('x', weights_only=True)",
    "import numpy as np\nnp.load('x')\nnp.load('x', allow_pickle=False)",
    "import pickle\npickle.dumps(1)",
    "import ast\nast.literal_eval('1')",
    "from rapha_trainer import RaphaDataLoader, release\nloader = RaphaDataLoader()\nloader.tag = 1\n"
    "release.weights({})\nrelease.metric('loss', 1.0)",
    "class Mine(RaphaDataLoader):\n    def __setattr__(self, k, v):\n        object.__setattr__(self, k, v)",
    "import argparse\nargs = argparse.ArgumentParser().parse_args()\nprint(vars(args), locals())",
    "import multiprocessing as mp\nmp.set_start_method('fork')\nimport concurrent.futures",
    "import torch\ntorch.backends.cudnn.deterministic = True\nimport torch.distributed as dist",
    "import asyncio\nasyncio.run(main())",
    "import logging\nimport logging.handlers\nlogging.basicConfig()",
    "import platform\nplatform.system()\nplatform.node()",
    "import random, warnings\nrandom.seed(1)\nwarnings.filterwarnings('ignore')",
    "import pandas as pd\ndf.eval('a + b')\ndf.query('a > 1')",
    "import timeit\nt = timeit.default_timer()",
    "import typing\nif typing.TYPE_CHECKING:\n    from torch import Tensor",
    "",
]


@pytest.mark.parametrize("source", BENIGN)
def test_ordinary_code_has_no_finding(source: str) -> None:
    assert judged(source).findings == ()


HOSTILE_PROJECTS: list[tuple[dict[str, str | bytes], str, str]] = [
    (
        {
            "train.py": "import a.b.c",
            "a/__init__.py": "import ssl",
            "a/b/__init__.py": "",
            "a/b/c.py": "",
        },
        NETWORK,
        "a/__init__.py",
    ),
    (
        {
            "train.py": "from pkg import a",
            "pkg/__init__.py": "",
            "pkg/a.py": "from . import b",
            "pkg/b.py": "import ssl",
        },
        NETWORK,
        "pkg/b.py",
    ),
    (
        {
            "train.py": "from pkg.a import *",
            "pkg/a.py": "from .b import *",
            "pkg/b.py": "import ssl",
        },
        NETWORK,
        "pkg/b.py",
    ),
    (
        {
            "train.py": "import p.q.a",
            "p/q/a.py": "from ..b import c",
            "p/b.py": "from .d import e",
            "p/d.py": "import ssl",
        },
        NETWORK,
        "p/d.py",
    ),
    (
        {
            "train.py": "__import__('h')",
            "h.py": "import ssl",
        },
        NETWORK,
        "h.py",
    ),
    (
        {
            "train.py": "import importlib\nimportlib.import_module('.b', 'p')\nimport p.a",
            "p/a.py": "import importlib\nimportlib.import_module('.b', 'p')",
            "p/b.py": "import ssl",
        },
        NETWORK,
        "p/b.py",
    ),
    (
        {
            "train.py": "import h\nh.o.system('ls')",
            "h.py": "import os as o",
        },
        PROCESS,
        "train.py",
    ),
    (
        {
            "train.py": "from h import o\no.system('ls')",
            "h.py": "from g import o",
            "g.py": "import os as o",
        },
        PROCESS,
        "train.py",
    ),
    (
        {
            "train.py": "from pkg import o\no.system('ls')",
            "pkg/__init__.py": "import os as o",
        },
        PROCESS,
        "train.py",
    ),
    (
        {
            "train.py": "from h import *\nos.system('ls')",
            "h.py": "import os",
        },
        PROCESS,
        "train.py",
    ),
    (
        {
            "train.py": "from h import *\nr.weights = 1",
            "h.py": "from rapha_trainer import release as r",
        },
        SHADOW,
        "train.py",
    ),
    (
        {
            "train.py": "import sys\nsys.path.insert(0, 'lib')\nimport x",
            "lib/x.py": "import ssl",
        },
        NETWORK,
        "lib/x.py",
    ),
    (
        {
            "train.py": "from sys import path\npath.append('lib')\nimport x",
            "lib/x.py": "import ssl",
        },
        NETWORK,
        "lib/x.py",
    ),
    (
        {
            "train.py": "1",
            "random.py": "",
        },
        SHADOW,
        "random.py",
    ),
    (
        {
            "train.py": "1",
            "json/__init__.py": "",
        },
        SHADOW,
        "json/__init__.py",
    ),
    (
        {
            "train.py": "1",
            "rapha_trainer.py": "",
        },
        SHADOW,
        "rapha_trainer.py",
    ),
    (
        {
            "train.py": "1",
            "rapha_trainer/__init__.py": "",
        },
        SHADOW,
        "rapha_trainer/__init__.py",
    ),
    (
        {
            "train.py": "1",
            "torch/__init__.py": "",
        },
        SHADOW,
        "torch/__init__.py",
    ),
    (
        {
            "train.py": "import h",
            "h.py": "def (",
        },
        UNPARSABLE,
        "h.py",
    ),
]


@pytest.mark.parametrize(("files", "code", "path"), HOSTILE_PROJECTS)
def test_what_an_entrypoint_reaches_through_other_files_is_refused(
    files: dict[str, str | bytes], code: str, path: str
) -> None:
    found = [f for f in refusals(scan(image(files))) if f.rule == code]
    assert f"app/{path}" in {f.path for f in found}


def test_a_change_of_a_packages_path_makes_every_folder_reachable() -> None:
    path = "__path__.append('/app/lib')"
    report = scan(
        image({"train.py": "import pkg\nimport x", "pkg/__init__.py": path, "lib/x.py": "import ssl"})
    )
    assert {f.path for f in refusals(report)} == {"app/lib/x.py"}


def test_what_is_merely_present_warns() -> None:
    report = scan(image({"train.py": "print(1)", "tools/upload.py": "import requests", "old.py": "def ("}))
    assert report.ok
    assert {(f.rule, f.severity, f.path) for f in report.findings} == {
        (NETWORK, "warn", "app/tools/upload.py"),
        (UNPARSABLE, "warn", "app/old.py"),
    }


def test_a_change_to_the_standard_library_warns() -> None:
    (finding,) = judged("import json\njson.dumps = None").findings
    assert (finding.rule, finding.severity, finding.line) == (SHADOW, "warn", 2)


def test_the_predict_entry_is_an_entrypoint_too() -> None:
    files = {"train.py": "1", "predict.py": "import socket"}
    assert scan(image(files)).ok
    assert codes(scan(image(files, predict=("python3", "predict.py")))) == {NETWORK}


def test_lines_are_those_of_the_code() -> None:
    report = judged("import json\n\n\nimport socket\n")
    assert [(f.path, f.line) for f in report.findings] == [("app/train.py", 4)]


def test_too_many_meanings_of_a_name_and_too_many_stars_refuse() -> None:
    names = "".join(f"import a{n} as m\n" for n in range(30))
    stars = "".join(f"from a{n} import *\n" for n in range(30))
    assert codes(judged(names)) == {DYNAMIC}
    assert codes(judged(stars)) == {DYNAMIC}


def test_import_cycles_end() -> None:
    assert judged("import a\na.b.a.b.a.x", a="import b\nimport a", b="import a\nfrom a import *").ok


_fragments = st.sampled_from(
    [
        *("import os", "os", ".system", "(", ")", "[", "]", "'x'", "=", "def f", ":", "\n", "    ", "lambda"),
        *("exec", "getattr", ",", "sys.modules", "from . import *", "f'{", "}'", "match x", "case", "*", "@"),
        *("\\", "\t", "0"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_fragments, max_size=30).map("".join))
def test_any_text_gives_facts(source: str) -> None:
    collect(source.encode(), default_rules())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_report(source: bytes) -> None:
    assert scan(image({"train.py": source, "data.bin": source})).digest
