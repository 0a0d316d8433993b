"""The escape suite's own judgement: what counts as held, and that nothing else does."""

import ast
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.cli import main
from rapha.runtime.sandbox.interface import Ending, Limits, Outcome, Running, Spec
from rapha.runtime.sandbox.probe import control, suite, verdict, world
from rapha.runtime.sandbox.probe.attempts import catalogue, names, outputs, run
from rapha.runtime.sandbox.probe.attempts.kit import (
    HOST,
    INSIDE,
    Attempt,
    Catalogue,
    HeldError,
    World,
    other,
    past,
    proof,
)
from rapha.runtime.sandbox.probe.verdict import (
    Control,
    Inside,
    LeftOut,
    Probe,
    Report,
    Result,
    Tried,
    Verdict,
    judge,
    read,
)
from rapha.spec.refusals import Refused

WORLD = World(
    **{  # type: ignore[arg-type]
        name: {} if "dict" in kind else [] if "list" in kind else "" if kind == "str" else 0
        for name, kind in World.__annotations__.items()
    }
)
ATTEMPT = Attempt("family.name", "what", lambda _: "", absent=frozenset({errno.ENOSYS}))
REACHED = Tried(Result.reached, 0, "got through")
REFUSED = Tried(Result.refused, errno.EPERM, "no")
DIED = Tried(Result.died, -31, "killed by SIGSYS")
HUNG = Tried(Result.hung, 0, "no answer")
BROKEN = Tried(Result.broken, 0, "NameError")
BEGUN = Tried(Result.begun, 0, "")
ABSENT = Tried(Result.refused, errno.ENOSYS, "no such call")


@pytest.mark.parametrize(
    ("outer", "inside", "expected"),
    [
        (REACHED, REFUSED, ("reached", "held", "held")),
        (REACHED, DIED, ("reached", "held", "held")),
        (REACHED, REACHED, ("reached", "escaped", "escaped")),
        (REACHED, HUNG, ("reached", "error", "no_control")),
        (REACHED, BROKEN, ("reached", "error", "no_control")),
        (REACHED, BEGUN, ("reached", "error", "no_control")),
        (REACHED, None, ("reached", "error", "no_control")),
        (REFUSED, REFUSED, ("failed", "held", "no_control")),
        (DIED, REFUSED, ("failed", "held", "no_control")),
        (HUNG, REFUSED, ("failed", "held", "no_control")),
        (BROKEN, REFUSED, ("failed", "held", "no_control")),
        (None, REFUSED, ("failed", "held", "no_control")),
        (None, None, ("failed", "error", "no_control")),
        (ABSENT, HUNG, ("failed", "error", "no_control")),
        (REFUSED, REACHED, ("failed", "escaped", "escaped")),
        (ABSENT, REACHED, ("failed", "escaped", "escaped")),
        (None, REACHED, ("failed", "escaped", "escaped")),
    ],
)
def test_nothing_but_a_refusal_with_a_control_is_held(
    outer: Tried | None, inside: Tried | None, expected: tuple[str, str, str]
) -> None:
    row = judge(ATTEMPT, outer, inside)
    assert isinstance(row, Probe)
    assert (row.control, row.inside, row.verdict) == expected


def test_what_a_kernel_does_not_have_is_left_out_and_named() -> None:
    row = judge(ATTEMPT, ABSENT, REFUSED)
    assert isinstance(row, LeftOut)
    assert "ENOSYS" in row.why
    assert isinstance(judge(replace(ATTEMPT, absent=frozenset()), ABSENT, REFUSED), Probe)


@pytest.mark.parametrize("outer", [None, REACHED, REFUSED, DIED, HUNG, BROKEN, BEGUN, ABSENT])
@pytest.mark.parametrize("inside", [None, REACHED, REFUSED, DIED, HUNG, BROKEN, BEGUN, ABSENT])
def test_held_needs_both_sides(outer: Tried | None, inside: Tried | None) -> None:
    row = judge(ATTEMPT, outer, inside)
    held = isinstance(row, Probe) and row.verdict is Verdict.held
    assert held == (outer is REACHED and inside in {REFUSED, DIED, ABSENT})


def row(state: Verdict) -> Probe:
    return Probe("a.b", "a", "what", Control.reached, Inside.held, state, "how")


@pytest.mark.parametrize(
    ("states", "ok", "escaped"),
    [
        ([], False, False),
        ([Verdict.held], True, False),
        ([Verdict.held, Verdict.no_control], False, False),
        ([Verdict.held, Verdict.no_control, Verdict.escaped], False, True),
    ],
)
def test_a_report_is_good_only_if_all_was_held(states: list[Verdict], ok: bool, escaped: bool) -> None:
    report = Report("driver", {}, tuple(map(row, states)))
    assert (report.ok, report.escaped) == (ok, escaped)
    assert sum(report.counts.values()) == len(states)
    assert report.dump()["ok"] is ok


def line(**fields: object) -> bytes:
    return json.dumps({"id": "a.b", "result": "refused", "code": 1, "how": "no"} | fields).encode() + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'"id"\n',
        b"[" * 100_000,
        line(id="c.d"),
        line(id=["a.b"]),
        line(result="held"),
        line(code="1"),
        line(code=True),
        line(how=None),
        line()[:-5],
        b"\xff" + line(),
    ],
)
def test_what_is_no_line_of_ours_says_nothing(data: bytes) -> None:
    assert read(data, ["a.b"]) == {}


@given(st.binary(max_size=200))
def test_no_output_breaks_the_reader(data: bytes) -> None:
    assert set(read(data + b"\n" + line(), ["a.b"])) == {"a.b"}


def test_nothing_said_later_takes_an_escape_back() -> None:
    reached, refused = line(result="reached"), line()
    for data in (reached + refused, refused + reached, line(result="begun") + reached):
        assert read(data, ["a.b"])["a.b"].result is Result.reached
    assert read(line(result="begun") + refused, ["a.b"])["a.b"].result is Result.refused


def test_the_catalogue_is_large_and_every_id_its_own() -> None:
    ids = [attempt.id for attempt in catalogue.ALL]
    assert len(ids) == len(set(ids)) >= 200
    assert sum(not attempt.root for attempt in catalogue.ALL) >= 120
    families = {attempt.family for attempt in catalogue.ALL}
    assert families >= {"network", "kernel", "files", "descriptors", "identity", "limits", "outputs"}
    assert set(outputs.NAMES) == {attempt.id for attempt in catalogue.LEFT}
    twice = Catalogue()
    twice.add("x.y", "", lambda _: "")
    with pytest.raises(ValueError, match="two attempts"):
        twice.add("x.y", "", lambda _: "")


def test_what_runs_inside_needs_the_standard_library_alone() -> None:
    folder = Path(catalogue.__file__).parent
    own = "rapha.runtime.sandbox.probe.attempts"
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in imported:
                assert name.startswith(own) or name.partition(".")[0] in sys.stdlib_module_names, (file, name)


def outside(capabilities: int) -> world.Outside:
    return world.Outside(WORLD, (), capabilities)


def test_who_is_not_root_is_told_what_was_left_out() -> None:
    chosen, left = suite.selected(outside(0), "x86_64")
    assert not any(attempt.root for attempt in chosen)
    assert len(chosen) + len(left) == len(catalogue.ALL)
    assert len(chosen) >= 60
    everything, none = suite.selected(outside(-1), "x86_64")
    assert (everything, none) == (catalogue.ALL, ())
    _, left = suite.selected(outside(~(1 << 24)), "x86_64")
    assert {one.id for one in left} == {a.id for a in catalogue.ALL if a.capability == 24}
    _, left = suite.selected(outside(-1), "aarch64")
    assert {one.id for one in left} == {a.id for a in catalogue.ALL if a.x86}


@given(st.binary(max_size=80))
def test_the_name_server_answers_no_nonsense(query: bytes) -> None:
    answer = names.answer(query)
    assert not answer or answer[:2] == query[:2]


def test_the_name_server_answers_our_question() -> None:
    assert names.answer(names.question()).endswith(socket.inet_aton(names.ADDRESS))


@pytest.mark.parametrize(
    ("attempt", "result"),
    [
        (lambda _: "through", "reached"),
        (lambda _: None, "reached"),
        (lambda _: Path("/nonexistent").stat(), "refused"),
        (lambda _: proof(b"x", WORLD), "refused"),
        (lambda _: other(os.getpid()), "refused"),
        (lambda _: undefined, "broken"),  # type: ignore[name-defined]  # noqa: F821
        (lambda _: 1 // 0, "broken"),
        (lambda _: os._exit(0), "broken"),
        (lambda _: os.kill(os.getpid(), 9), "died"),
    ],
)
def test_each_attempt_is_a_process_of_its_own(attempt: object, result: str) -> None:
    tried = run._try(Attempt("a.b", "", attempt), WORLD)  # type: ignore[arg-type]
    assert tried["result"] == result


def test_an_attempt_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DEADLINE_S", 0.2)
    tried = run._try(Attempt("a.b", "", lambda _: os.read(os.pipe()[0], 1)), WORLD)
    assert tried["result"] == "hung"


def test_words_of_an_attempt_do_not_get_among_the_results(capfd: pytest.CaptureFixture[str]) -> None:
    run._try(Attempt("a.b", "", lambda _: os.write(1, b'{"id": "forged"}\n')), WORLD)
    assert capfd.readouterr() == ("", "")


def test_a_call_counts_as_let_through_only_for_the_right_reason() -> None:
    assert "EINVAL" in past({errno.EINVAL}, "clone3", None, 0)
    with pytest.raises(OSError, match="clone3"):
        past({errno.EBADF}, "clone3", None, 0)
    with pytest.raises(HeldError):
        other(1)


def outcome(ending: Ending, code: int) -> Outcome:
    return Outcome(ending, code, 0.0, 0.0, 0, {})


@pytest.mark.parametrize(
    ("name", "ending", "code", "result"),
    [
        ("limits.memory", Ending.memory, 137, Result.refused),
        ("limits.memory", Ending.timeout, 124, Result.hung),
        ("limits.cpu", Ending.timeout, 124, Result.refused),
        ("limits.cpu", Ending.memory, 137, Result.died),
        ("limits.wall", Ending.timeout, 124, Result.refused),
        ("limits.log", Ending.timeout, 124, Result.hung),
        ("limits.processes", Ending.exited, 137, Result.died),
        ("limits.processes", Ending.exited, 2, Result.died),
        ("limits.processes", Ending.exited, 0, Result.broken),
    ],
)
def test_who_had_begun_was_stopped_by_what_ended_the_sandbox(
    name: str, ending: Ending, code: int, result: Result
) -> None:
    one = attempt(name)
    assert suite._ended(one, BEGUN, outcome(ending, code)).result is result
    assert suite._ended(one, REACHED, outcome(ending, code)) is REACHED
    assert suite._ended(one, BROKEN, outcome(ending, code)) is BROKEN


def attempt(name: str) -> Attempt:
    (found,) = (attempt for attempt in catalogue.ALL if attempt.id == name)
    return found


@pytest.mark.parametrize(
    ("name", "tried", "said", "lives", "result"),
    [
        ("limits.log", REACHED, 101, False, Result.reached),
        ("limits.log", BEGUN, 101, False, Result.reached),
        ("limits.log", BEGUN, 100, False, Result.refused),
        ("limits.log", BEGUN, 99, False, Result.begun),
        ("limits.outlive", REACHED, 0, True, Result.reached),
        ("limits.outlive", REACHED, 0, False, Result.refused),
        ("limits.outlive", BEGUN, 0, False, Result.begun),
        ("limits.memory", REACHED, 0, False, Result.reached),
    ],
)
def test_two_attempts_are_judged_by_what_is_left(
    name: str, tried: Tried, said: int, lives: bool, result: Result
) -> None:
    after = suite._past_the_end(attempt(name), tried, said, lives, Limits(log_bytes=100))
    assert after.result is result


def test_what_was_left_counts_only_where_it_arrives(tmp_path: Path) -> None:
    left, program = attempt("outputs.link"), attempt("outputs.program")
    assert suite._arrived(left, REACHED, tmp_path).result is Result.refused
    (tmp_path / "link").symlink_to("/nonexistent")
    assert suite._arrived(left, REACHED, tmp_path) is REACHED
    assert suite._arrived(left, REFUSED, tmp_path) is REFUSED
    (tmp_path / "program").touch(0o600)
    assert suite._arrived(program, REACHED, tmp_path).result is Result.refused
    (tmp_path / "program").chmod(0o4700)
    assert suite._arrived(program, REACHED, tmp_path) is REACHED


class UnsafeUnwalled:
    """A driver that says it has walls, and starts the command without any."""

    name = "sabotaged"

    def check(self) -> Mapping[str, str]:
        return {}

    def start(self, spec: Spec) -> Running:
        where = {mount.dest: str(mount.source) for mount in spec.mounts}
        argv = [where.get(word, str(world.SOURCES) if word == "/rapha/in" else word) for word in spec.argv]
        assert spec.broker is not None
        assert spec.log is not None
        environment = {**os.environ, "RAPHA_BROKER_FD": str(spec.broker)}
        with spec.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, env=environment, stdout=log, pass_fds=[spec.broker], stdin=subprocess.DEVNULL
            )
        return _Unwalled(self.process)


class _Unwalled:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> Outcome:
        return replace(outcome(Ending.exited, self._process.wait()), walls={"namespaces": "all of them"})

    def kill(self) -> None:
        self._process.kill()


def quick(attempt: Attempt) -> bool:
    return attempt in catalogue.TOGETHER and attempt.place == HOST and attempt.family in {"network", "files"}


def test_a_driver_without_walls_is_found_out() -> None:
    report = suite.probe(UnsafeUnwalled(), quick)
    held = [row.id for row in report.probes if row.verdict is Verdict.held]
    assert report.escaped
    assert not report.ok
    assert not held
    assert report.walls == {"namespaces": "all of them"}


class _Silent(UnsafeUnwalled):
    """A driver that starts nothing and says that all went well."""

    def start(self, spec: Spec) -> Running:
        assert spec.log is not None
        spec.log.touch()
        return _Unwalled(subprocess.Popen([sys.executable, "-S", "-c", ""]))


def test_a_driver_that_runs_nothing_shows_nothing() -> None:
    report = suite.probe(_Silent(), lambda attempt: attempt.id in {"files.secret", "network.tcp4"})
    assert report.counts == {"held": 0, "escaped": 0, "no_control": 2}
    assert "said nothing" in report.probes[0].how


class _Unstartable(UnsafeUnwalled):
    def start(self, spec: Spec) -> Running:
        running = super().start(spec)
        running.wait()
        failed = replace(outcome(Ending.failed_to_start, 125), detail="no namespaces here")
        running.wait = lambda: failed  # type: ignore[method-assign]
        return running


def test_a_sandbox_that_does_not_start_is_no_answer() -> None:
    with pytest.raises(Refused) as refused:
        suite.probe(_Unstartable(), lambda attempt: attempt.id == "files.secret")
    assert refused.value.code == "node.sandbox_unavailable"
    assert "no namespaces here" in refused.value.detail


def test_a_broken_control_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_BOOT", "raise SystemExit('no controls today')")
    report = suite.probe(None, lambda attempt: attempt.id in {"files.secret", "kernel.personality"})
    assert report.counts == {"held": 0, "escaped": 0, "no_control": 2}
    assert "no controls today" in report.probes[0].how


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([Verdict.held], 0),
        ([Verdict.held, Verdict.escaped], 1),
        ([Verdict.escaped, Verdict.no_control], 1),
        ([Verdict.held, Verdict.no_control], 3),
        ([], 3),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_code_is_the_verdict(
    states: list[Verdict],
    code: int,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tuple(replace(row(state), how="\033[2Jhow") for state in states)
    report = Report("bubblewrap", {"seccomp": "loaded"}, rows, (LeftOut("c.d", "why"),))
    monkeypatch.setattr(suite, "probe", lambda _: report)
    assert main.run(["sandbox", "probe", *options]) == code
    out, err = capsys.readouterr()
    assert "\033[2J" not in out + err
    assert "left out: c.d: why" in err
    if options:
        assert json.loads(out) == report.dump()


def test_no_sandbox_to_attack_is_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> Report:
        raise Refused("node.sandbox_unavailable", "none here")

    monkeypatch.setattr(suite, "probe", refuse)
    assert main.run(["sandbox", "probe"]) == 3
    assert capsys.readouterr().out == ""


def test_the_places_of_a_world_are_the_sandboxs_inside(tmp_path: Path) -> None:
    inner = outside(0).inside(suite.TOGETHER)
    assert (inner.place, inner.tmp, inner.out, inner.broker) == (INSIDE, "/tmp", "/rapha/out", 3)
    outer = outside(0).control(HOST, suite.TOGETHER, tmp_path, 7)
    assert (outer.place, outer.out, outer.broker) == (HOST, str(tmp_path / "out"), 7)
    assert inner.caps["open_files"] == outer.caps["open_files"] == suite.TOGETHER.open_files
    assert verdict.Tried(Result.refused, errno.EPERM, "words").shown == "EPERM words"
