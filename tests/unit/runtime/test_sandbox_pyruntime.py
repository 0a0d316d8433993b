import hashlib
import sys
from pathlib import Path

import pytest

from rapha.runtime.sandbox.interface import Mount
from rapha.runtime.sandbox.pyruntime import SITE, PythonRuntime, installed
from rapha.spec.refusals import Refused


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(
    site: Path, name: str, files: list[str], requires: tuple[str, ...] = (), version: str = "1.0"
) -> None:
    """A distribution as pip leaves it."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    for file in files:
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (site / info).mkdir()
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (site / info / "METADATA").write_text("\n".join(lines) + "\n")
    recorded = [*files, f"{info}/METADATA", f"{info}/RECORD"]
    (site / info / "RECORD").write_text("".join(f"{file},,\n" for file in recorded))


def placed(runtime: PythonRuntime) -> set[str]:
    return {m.dest.removeprefix(f"{SITE}/") for m in runtime.mounts if m.dest.startswith(f"{SITE}/")}


def test_only_what_was_named_and_what_it_requires_is_mounted(site: Path) -> None:
    install(site, "alpha", ["alpha/__init__.py", "alpha/data/x.csv"], ("Beta.One>=1; python_version > '3'",))
    install(site, "beta-one", ["beta_one.py", "__pycache__/beta_one.pyc"])
    install(site, "patients", ["patients/__init__.py"])
    runtime = PythonRuntime.discover(["Alpha"])
    assert placed(runtime) == {"alpha", "alpha-1.0.dist-info", "beta_one.py", "beta_one-1.0.dist-info"}
    assert runtime.distributions == {"alpha": "1.0", "beta-one": "1.0"}


def test_extras_are_taken_only_where_asked_for(site: Path) -> None:
    install(site, "alpha", ["alpha.py"], ("beta[fast]", "gamma; extra == 'never'"))
    install(site, "beta", ["beta.py"], ("delta; extra == 'fast'", "gamma; extra == 'slow'"))
    install(site, "gamma", ["gamma.py"])
    install(site, "delta", ["delta.py"], ("alpha",))
    assert set(PythonRuntime.discover(["alpha"]).distributions) == {"alpha", "beta", "delta"}


def test_a_shared_namespace_package_gives_only_its_own_part(site: Path) -> None:
    install(site, "ours", ["shared/ours/__init__.py", "shared/ours/deep/x.so", "ours.libs/a.so"])
    install(site, "theirs", ["shared/theirs/__init__.py"])
    assert placed(PythonRuntime.discover(["ours"])) == {"shared/ours", "ours.libs", "ours-1.0.dist-info"}


def test_startup_hooks_scripts_and_ways_out_are_left_behind(site: Path) -> None:
    install(site, "alpha", ["alpha.py", "alpha.pth"])
    record = site / "alpha-1.0.dist-info/RECORD"
    record.write_text(record.read_text() + "../../../bin/tool,,\n/etc/passwd,,\n../../etc/shadow,,\n")
    assert placed(PythonRuntime.discover(["alpha"])) == {"alpha.py", "alpha-1.0.dist-info"}


def test_what_is_not_installed_is_refused_by_name() -> None:
    with pytest.raises(Refused) as refused:
        PythonRuntime.discover(["no-such-distribution"])
    assert refused.value.code == "node.config"
    assert "no-such-distribution" in refused.value.detail


def test_a_distribution_without_a_record_is_refused(site: Path) -> None:
    install(site, "alpha", ["alpha.py"])
    (site / "alpha-1.0.dist-info/RECORD").unlink()
    with pytest.raises(Refused) as refused:
        PythonRuntime.discover(["alpha"])
    assert "RECORD" in refused.value.detail


def test_a_requirement_that_can_not_be_read_is_refused(site: Path) -> None:
    install(site, "alpha", ["alpha.py"], ("!!!",))
    with pytest.raises(Refused) as refused:
        PythonRuntime.discover(["alpha"])
    assert refused.value.code == "node.config"


def test_the_digest_follows_version_and_record(site: Path) -> None:
    install(site, "alpha", ["alpha.py"])
    first = PythonRuntime.discover(["alpha"]).digest
    assert PythonRuntime.discover(["alpha"]).digest == first
    record = site / "alpha-1.0.dist-info/RECORD"
    record.write_text(record.read_text().replace("alpha.py,,", "alpha.py,sha256=x,1"))
    assert PythonRuntime.discover(["alpha"]).digest != first
    assert PythonRuntime.discover(()).digest not in {first, hashlib.sha256(b"").hexdigest()}


def test_the_hosts_own_packages_are_hidden_and_its_paths_are_not_repeated_inside() -> None:
    runtime = PythonRuntime.discover(())
    library = (
        Path(sys.base_prefix) / sys.platlibdir / f"python{sys.version_info.major}.{sys.version_info.minor}"
    )
    hidden = [m.dest for m in runtime.mounts if m.source is None]
    assert bool(hidden) == any((library / name).is_dir() for name in ("site-packages", "dist-packages"))
    assert all(m.dest.startswith(("/rapha/", "/usr/lib", "/lib")) for m in runtime.mounts)
    assert placed(runtime) == set()


def test_a_hiding_mount_lies_over_what_it_hides() -> None:
    mounts = PythonRuntime.discover(()).mounts
    for at, mount in enumerate(mounts):
        if mount.source is None:
            assert any(mount.dest.startswith(earlier.dest + "/") for earlier in mounts[:at])


def test_variables_name_only_places_inside() -> None:
    env = PythonRuntime.discover(()).env
    assert env["HOME"] == "/tmp"
    assert str(Path.home()) == "/tmp" or str(Path.home()) not in " ".join(env.values())
    assert env["PYTHONPATH"] == "/rapha/lib:/rapha/site"


def test_the_trainers_library_comes_with_every_runtime() -> None:
    assert [m for m in PythonRuntime.discover(()).mounts if m.dest == "/rapha/lib/rapha_trainer"] != []


def test_installed_leaves_out_what_is_not_there() -> None:
    assert installed(["numpy", "no-such-distribution"]) == ("numpy",)


def test_mounts_are_read_in_order_and_never_repeat() -> None:
    destinations = [m.dest for m in PythonRuntime.discover(installed()).mounts]
    assert len(destinations) == len(set(destinations))
    assert all(isinstance(m, Mount) for m in PythonRuntime.discover(()).mounts)
