"""Ways from ordinary modules to code, programs and connections: each refuses; what is like them does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from rapha.runtime.image import File, Image
from rapha.runtime.scan import refusals, scan
from rapha.runtime.scan.blob import Memory


def refused(source: str) -> set[str]:
    image = Image(
        digest="sha256:" + "0" * 64,
        entrypoint=("python3", "train.py"),
        predict=None,
        runtime="rt",
        workdir="/app",
        files=cast(Mapping[str, File], {"app/train.py": Memory(source.encode())}),
        tree=Path("/none"),
    )
    return {finding.rule for finding in refusals(scan(image))}


HOSTILE: dict[str, list[str]] = {
    "image.dynamic_code": [
        "import pydoc\npydoc.importfile('/tmp/x.py')",
        "import unittest\nunittest.defaultTestLoader.loadTestsFromName('socket')",
        "import unittest\nunittest.main('socket')",
        "import logging.config as c\nc.BaseConfigurator({}).resolve('os.system')('x')",
        "import importlib.metadata as m\nm.entry_points(group='x')[0].load()",
        "from importlib.metadata import EntryPoint\nEntryPoint('a', 'os:system', 'g').load()('x')",
        "import pkg_resources\npkg_resources.EntryPoint.parse('a=os:system').resolve()('x')",
        "from pydantic import ImportString",
        "import hydra\nhydra.utils.instantiate(c)",
        "from monai.bundle import ConfigParser",
        "import string\nstring.Formatter().get_field('0.x', [f], {})",
        "import rlcompleter",
        "import importlib.util as u\nu.find_spec('socket').loader.create_module(u.find_spec('socket'))",
        "df.query('@pd.io.common.os.system(\"x\")')",
        "df.eval('@f(1)')",
    ],
    "image.subprocess": [
        "import os\nobject.__getattribute__(os, 'system')('x')",
        "import os\nos.__getattribute__('system')('x')",
        "import os\nglobals().get('os').system('x')",
        "import os\nvars(os).get('system')('x')",
        "import os\nos.__dict__.setdefault('system')('x')",
        "import uuid\nuuid._get_command_stdout('curl', 'h')",
        "import psutil\npsutil.Popen(['x'])",
        "from multiprocessing import resource_tracker",
        "import git",
    ],
    "image.network_module": [
        "from sklearn.datasets import fetch_openml",
        "from monai.apps import download_url",
        "import nltk\nnltk.download('x')",
        "import tqdm.contrib.telegram",
        "import pyarrow.fs as f\nf.FileSystem.from_uri('s3://x')",
        "loop.getaddrinfo('h', 1)",
        "import jax\njax.distributed.initialize('h:1')",
        "import pyodbc",
        "import pynetdicom",
    ],
    "image.native_code": [
        "options.register_custom_ops_library('x.so')",
        "import llvmlite.binding as b\nb.load_library_permanently('x')",
    ],
    "image.pickle": [
        "import numpy as np\nnp.load('x.npy', None, True)",
        "import numpy as np\nnp.load('x.npy', **{'allow_pickle': True})",
        "import numpy as np\nnp.load(*a)",
    ],
}
ORDINARY = [
    "import numpy as np\nnp.load('x.npy', 'r')\nnp.load('x.npy', allow_pickle=False)",
    "df.query('age > @limit and sex == \"F\"')\ndf.eval('a = b + c')",
    "model.eval()\ncursor.query(text)",
    "import importlib.metadata\nimportlib.metadata.version('torch')",
    "config.get('os', {}).get('system')\nd = {}\nd.setdefault('exec', 1)",
    "import unittest\nclass T(unittest.TestCase):\n    pass",
    "from sklearn.datasets import load_breast_cancer, make_classification",
    "import cProfile\np = cProfile.Profile()\np.enable()",
    "class A:\n    def __getattr__(self, name):\n        return super().__getattribute__(name)",
]


@pytest.mark.parametrize(("rule", "source"), [(r, s) for r, listed in HOSTILE.items() for s in listed])
def test_ways_round_refuse(rule: str, source: str) -> None:
    assert rule in refused(source)


@pytest.mark.parametrize("source", ORDINARY)
def test_what_is_like_them_does_not(source: str) -> None:
    assert not refused(source)
