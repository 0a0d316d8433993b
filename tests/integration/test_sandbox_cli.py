"""`rapha sandbox run` as cli.md promises it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rapha.cli import main
from rapha.runtime.sandbox import drivers
from rapha.runtime.sandbox.interface import Sandbox
from rapha.spec.refusals import Refused

MAIN = (sys.executable, "-c", "from rapha.cli.main import main; main()", "sandbox")


def rapha(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAIN, *arguments], capture_output=True, text=True, timeout=60)


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return rapha("run", *options, "--", "python3", "-c", code)


def test_output_and_exit_code_are_the_commands() -> None:
    done = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_what_is_long_is_not_cut() -> None:
    assert python("print('x' * 3_000_000)").stdout == "x" * 3_000_000 + "\n"


def test_in_is_read_only_and_out_is_copied_after_exit(tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "new" / "out"
    given.mkdir(mode=0o700)
    (given / "data").write_text("records")
    code = """
import os
try: open('/rapha/in/data', 'a')
except OSError as error: print(error.strerror)
open('/rapha/out/copy', 'w').write(open('/rapha/in/data').read())
os.symlink('copy', '/rapha/out/link')"""
    done = python(code, "--in", str(given), "--out", str(out))
    assert (done.returncode, done.stdout) == (0, "Read-only file system\n")
    assert {file.name: file.read_text() for file in out.iterdir()} == {"copy": "records"}
    assert "link: symbolic link" in done.stderr


def test_the_runtime_has_rapha_trainer() -> None:
    code = "import importlib.util as u; print(u.find_spec('rapha_trainer') is not None, u.find_spec('rapha'))"
    assert python(code).stdout == "True None\n"


def test_time_is_124() -> None:
    done = python("import time; time.sleep(60)", "--timeout", "0.5")
    assert (done.returncode, done.stderr) == (124, "sandbox: timeout\n")


def test_memory_is_137() -> None:
    done = python("x = [bytearray(b'x' * (1 << 20)) for _ in range(1000)]", "--memory-mb", "64")
    assert (done.returncode, done.stderr) == (137, "sandbox: memory\n")


def test_outputs_are_bounded() -> None:
    done = python("open('/rapha/out/x', 'wb').write(bytes(4 << 20))", "--out-mb", "2")
    assert done.returncode == 1
    assert "OSError" in done.stderr


def test_a_command_that_is_not_there_is_127() -> None:
    assert rapha("run", "--", "nosuch").returncode == 127


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--",),
        ("--driver", "docker", "--", "python3"),
        ("--wan", "wan0", "--", "python3"),
        ("--airgap-socket", "/nosuch", "--", "python3"),
        ("--in", "/nosuch", "--", "python3"),
        ("--out", "/", "--", "python3"),
        ("--out", "/proc/nosuch/x", "--", "python3"),
        ("--timeout", "0", "--", "python3"),
        ("--timeout", "nan", "--", "python3"),
        ("--memory-mb", "-1", "--", "python3"),
        ("--out-mb", "0", "--", "python3"),
        ("--", ""),
    ],
)
def test_a_wrong_call_is_2_and_runs_nothing(
    arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["sandbox", "run", *arguments]) == 2
    assert capfd.readouterr().out == ""


def test_an_air_gap_whose_helper_does_not_answer_runs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Nobody's socket and no interface: nothing of this host can be severed here.
    gap = ("--airgap", "--wan", "nosuch0", "--airgap-socket", str(tmp_path / "nobody.sock"))
    assert main.run(["sandbox", "run", *gap, "--", "python3", "-c", "print('ran')"]) == 3
    out, err = capfd.readouterr()
    assert "posture.seal_failed" in err
    assert "ran" not in out


def test_a_second_driver_that_is_not_installed_is_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def absent() -> Sandbox:
        raise Refused("node.sandbox_unavailable", "no runsc")

    monkeypatch.setattr(drivers, "DRIVERS", {"gvisor": absent})
    for command in (["run", "--driver", "gvisor", "--", "python3"], ["probe", "--driver", "gvisor"]):
        assert main.run(["sandbox", *command]) == 3
        out, err = capfd.readouterr()
        assert (out, "no runsc" in err) == ("", True)


@pytest.mark.peer("runsc")
def test_the_second_driver_keeps_the_same_contract(tmp_path: Path) -> None:
    code = "import sys; open('/rapha/out/x', 'w').write('x'); print('out'); sys.exit(7)"
    done = python(code, "--driver", "gvisor", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("arguments", [("--driver", "docker"), ("--json", "extra"), ("--nosuch",)])
def test_a_wrong_call_of_the_suite_is_2(
    arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["sandbox", "probe", *arguments]) == 2
    assert capfd.readouterr().out == ""


def test_interrupting_ends_it(tmp_path: Path) -> None:
    # A shell's background job ignores SIGINT, and its children with it: what is tested is one that doesn't.
    command = ["env", "--default-signal=INT", *MAIN, "run", "--out", str(tmp_path), "--", "python3", "-c"]
    command.append(
        "import time; open('/rapha/out/x', 'w').write('x'); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        os.kill(running.pid, signal.SIGINT)
        _, words = running.communicate(timeout=20)
    assert running.returncode == 137
    assert words == "sandbox: killed\n"
    assert list(tmp_path.iterdir()) == []
