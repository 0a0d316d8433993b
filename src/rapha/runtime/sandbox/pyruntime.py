"""The Python that a job gets: interpreter, system libraries, and the distributions that were named.

Laid out at fixed paths whatever the host's are: `/rapha/python` (prefix), `/rapha/site` (distributions, one
mount a top-level entry), `/rapha/lib` (rapha_trainer). Interpreters from pyenv, Debian and
python-build-standalone are laid out so; a conda prefix, whose libraries lie beside the interpreter, is not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final

from rapha.runtime.sandbox.interface import Mount
from rapha.spec.refusals import Refused

PREFIX: Final = "/rapha/python"
SITE: Final = "/rapha/site"
LIB: Final = "/rapha/lib"
JOB_PACKAGES: Final = ("numpy", "ml-dtypes", "pyarrow", "safetensors", "torch")
"""What a node offers to jobs, as far as it has them."""

_LOADERS: Final = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}
_REQUIREMENT: Final = re.compile(
    r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?", re.DOTALL
)
_EXTRA: Final = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
_DISTRIBUTION_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HIDDEN: Final = ("site-packages", "dist-packages")
"""Where the host's interpreter keeps packages that nobody named."""


@dataclass(frozen=True, slots=True)
class PythonRuntime:
    """Mounts and variables that give a job its Python.

    Attributes:
        mounts: all read-only, in an order that may be prefixed to a spec's own.
        env: the variables that go with them.
        python: the interpreter's path inside; `python3` finds it too.
        digest: lower-case hex SHA-256 over lines of text: the implementation, full version and machine;
            `name==version sha256(RECORD)` of each distribution in the order of names; and
            `rapha_trainer/path sha256` of each of its files. RECORD holds the digest of each file that the
            distribution installed; that the files still match is the business of a host's integrity check.
        distributions: normalised name to version, the closure that was mounted.
    """

    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    python: str
    digest: str
    distributions: Mapping[str, str]

    @classmethod
    def discover(cls, packages: Sequence[str]) -> PythonRuntime:
        """Find this process's interpreter, `packages` and all that they require, among what is installed.

        A requirement under an environment marker is taken if it is installed: a superset of what pip takes.

        Raises:
            Refused: `node.config` for a package that is not installed, or has no RECORD;
                `node.sandbox_unavailable` for a C library or layout that is not known.
        """
        distributions = {d.name: d for d in _closure(packages)}
        trainer = _trainer()
        site = {mount.dest: mount for d in distributions.values() for mount in d.mounts}
        mounts = [*_interpreter(), *_libraries(), *site.values(), Mount(trainer, f"{LIB}/rapha_trainer")]
        return cls(
            mounts=tuple(mounts),
            env=_environment(),
            python=f"{PREFIX}/bin/python3",
            digest=_digest(distributions, trainer),
            distributions={name: distributions[name].version for name in sorted(distributions)},
        )


@dataclass(frozen=True, slots=True)
class ImageRuntime:
    """What a full image gets of the node: `rapha_trainer`, and the variables of a job. Its own Python runs.

    Attributes:
        mounts, env: as in `PythonRuntime`.
    """

    mounts: tuple[Mount, ...]
    env: Mapping[str, str]

    @classmethod
    def make(cls, path: Sequence[str]) -> ImageRuntime:
        """For an image whose programs lie in the folders `path`; empty: where distributions have them.

        Raises:
            Refused: `node.config` if rapha_trainer is not installed.
        """
        kept = {name: value for name, value in _environment().items() if name != "LD_LIBRARY_PATH"}
        env = {**kept, "PATH": ":".join(path) or _DISTRIBUTION_PATH, "PYTHONPATH": LIB}
        return cls((Mount(_trainer(), f"{LIB}/rapha_trainer"),), env)


def installed(packages: Sequence[str] = JOB_PACKAGES) -> tuple[str, ...]:
    """Those of `packages` that this environment has."""
    return tuple(name for name in packages if _find(name) is not None)


@dataclass(frozen=True, slots=True)
class _Distribution:
    name: str
    version: str
    record: bytes
    root: Path

    @property
    def mounts(self) -> Iterator[Mount]:
        """One a top-level entry, so that nothing else of site-packages is in the job's world.

        Top-level bytecode caches are left out, and `.pth` files, which run code; of a namespace package
        (no `__init__.py`), which distributions share, each part that is this one's own is mounted.
        """
        paths = [line.partition(b",")[0].decode("utf-8") for line in self.record.splitlines()]
        whole = {
            path.partition("/")[0] for path in paths if path.endswith("/__init__.py") and path.count("/") == 1
        }
        seen = set()
        for path in paths:
            first, slash, rest = path.strip('"').partition("/")
            if (
                first in {"..", "", "__pycache__"}
                or first.startswith("/")
                or (not slash and first.endswith(".pth"))
            ):
                continue
            private = first in whole or first.endswith((".dist-info", ".libs"))
            seen.add(first if private or not slash else f"{first}/{rest.partition('/')[0]}")
        for entry in sorted(seen):
            if (self.root / entry).exists() and PurePosixPath(entry).name != "__pycache__":
                yield Mount(self.root / entry, f"{SITE}/{entry}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _find(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _closure(packages: Sequence[str]) -> Iterator[_Distribution]:
    queue = [(_normal(name), "") for name in packages]
    wanted = {name for name, _ in queue}
    seen: set[tuple[str, str]] = set()
    given: set[str] = set()
    while queue:
        name, extra = item = queue.pop()
        if item in seen:
            continue
        seen.add(item)
        found = _find(name)
        if found is None:
            if name in wanted:
                raise Refused(
                    "node.config", f"the runtime lacks {name}: install it in the node's environment"
                )
            continue
        if name not in given:
            given.add(name)
            yield _read(name, found)
        for required, extras in _requirements(found, extra):
            queue += [(required, e) for e in ("", *extras)]


def _requirements(found: metadata.Distribution, extra: str) -> Iterator[tuple[str, list[str]]]:
    """What `found` requires, with the extras it asks for; for `extra` "" what it always requires."""
    for text in found.requires or ():
        match = _REQUIREMENT.match(text)
        if match is None:
            raise Refused("node.config", f"{found.name} requires {text!r}, which can't be read")
        name, extras, marker = match.groups()
        if (extra in _EXTRA.findall(marker or "")) if extra else ("extra" not in (marker or "")):
            yield _normal(name), [e.strip() for e in (extras or "").split(",") if e.strip()]


def _read(name: str, found: metadata.Distribution) -> _Distribution:
    record = found.read_text("RECORD")
    if not record:
        raise Refused("node.config", f"{name} has no RECORD: install it from a wheel")
    return _Distribution(name, found.version, record.encode(), Path(str(found.locate_file(""))))


def _trainer() -> Path:
    spec = importlib.util.find_spec("rapha_trainer")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise Refused("node.config", "the runtime lacks rapha_trainer: install it beside rapha")
    return Path(places[0])


def _interpreter() -> Iterator[Mount]:
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = prefix / sys.platlibdir / version
    program = prefix / "bin" / version
    for needed in (program, library / "os.py"):
        if not needed.is_file():
            raise Refused(
                "node.sandbox_unavailable", f"{needed} is absent: this Python's layout is not known"
            )
    for name in ("python3", "python", version):
        yield Mount(program.resolve(), f"{PREFIX}/bin/{name}")
    yield Mount(library.resolve(), f"{PREFIX}/{sys.platlibdir}/{version}")
    for name in _HIDDEN:
        if (library / name).is_dir():
            yield Mount(None, f"{PREFIX}/{sys.platlibdir}/{version}/{name}")


def _libraries() -> Iterator[Mount]:
    """The loader, the folders from which this process got its C library and the like, and libpython."""
    loader = _LOADERS.get(platform.machine(), "")
    if not loader or not Path(loader).exists():
        raise Refused("node.sandbox_unavailable", f"no GNU C library's loader for {platform.machine()}")
    yield Mount(Path(loader).resolve(), loader)
    own = (Path(sys.base_prefix), Path(sys.prefix))
    folders = set()
    for library in _mapped():
        if library.name.startswith("libpython"):
            yield Mount(library, f"{PREFIX}/lib/{library.name}")
        elif library.name.startswith(("libc.so", "libc-")) or not any(map(library.is_relative_to, own)):
            folders.add(library.parent)
    for folder in sorted(folders):
        if (
            folder.is_relative_to("/usr/lib")
            or folder.is_relative_to("/usr/lib64")
            or folder.is_relative_to("/lib")
        ):
            yield Mount(folder, str(folder))


def _mapped() -> set[Path]:
    """Shared libraries that this process has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    names = {line[line.index("/") :] for line in lines if "/" in line}
    return {Path(name) for name in names if re.search(r"\.so(\.[0-9.]+)?$", name)}


def _environment() -> dict[str, str]:
    threads = str(len(os.sched_getaffinity(0)))
    return {
        "PATH": f"{PREFIX}/bin:/usr/bin:/bin",
        "PYTHONPATH": f"{LIB}:{SITE}",
        "LD_LIBRARY_PATH": f"{PREFIX}/lib",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "HOME": "/tmp",  # noqa: S108  inside the sandbox, a tmpfs of its own
        "TMPDIR": "/tmp",  # noqa: S108
        "USER": "job",  # torch asks for a name, and there is no password file
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }


def _digest(distributions: Mapping[str, _Distribution], trainer: Path) -> str:
    lines = [f"{platform.python_implementation()} {sys.version} {platform.machine()}"]
    for name in sorted(distributions):
        found = distributions[name]
        lines.append(f"{name}=={found.version} {hashlib.sha256(found.record).hexdigest()}")
    for file in sorted(trainer.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"rapha_trainer/{file.relative_to(trainer).as_posix()} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
