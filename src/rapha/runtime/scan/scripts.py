"""What a shell script's commands mean: a network program, another program, or Python to be followed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.rules import RuleSet
from rapha.runtime.scan.shell import UNKNOWN, Command, ShellError, Word, commands
from rapha.runtime.scan.variables import assigned, defaulted, steers

SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "rbash", "hush"})
_KEYWORDS: Final = frozenset(
    {"if", "then", "elif", "else", "do", "while", "until", "{", "!", "time", "coproc", "&"}
)
_CLOSING: Final = frozenset({"fi", "done", "esac", "}", "for", "case", "select", "in", "function", "[["})
_PREFIXES: Final = frozenset(
    {"env", "xargs", "nohup", "timeout", "sudo", "doas", "exec", "command", "builtin", "nice", "ionice"}
    | {"setsid", "stdbuf", "chroot", "unshare", "taskset", "busybox", "toybox", "watch", "parallel", "time"}
    | {"strace", "ltrace", "script", "flock", "su", "runuser", "setpriv", "numactl", "catchsegv"}
)
_PLAIN: Final = frozenset(
    {
        ":",
        "exec",
        "true",
        "false",
        "echo",
        "printf",
        "set",
        "unset",
        "export",
        "local",
        "readonly",
        "declare",
        "shift",
    }
    | {"test", "[", "cd", "pwd", "exit", "return", "break", "continue", "umask", "wait", "read", "ulimit"}
    | {
        "getopts",
        "hash",
        "let",
        "typeset",
        "mkdir",
        "ls",
        "cat",
        "head",
        "tail",
        "wc",
        "sleep",
        "date",
        "basename",
    }
    | {
        "dirname",
        "cp",
        "mv",
        "rm",
        "ln",
        "touch",
        "chmod",
        "grep",
        "sort",
        "uniq",
        "cut",
        "tr",
        "tee",
        "seq",
        "id",
    }
    | {
        "realpath",
        "readlink",
        "nproc",
        "free",
        "df",
        "du",
        "uname",
        "hostname",
        "expr",
        "mktemp",
        "sha256sum",
    }
)
_TEXT_RUNNERS: Final = frozenset(
    {"eval", "source", ".", "trap", "alias", "enable", "complete", "bind", "mapfile"}
)
_LANGUAGES: Final = frozenset(
    {
        "awk",
        "gawk",
        "mawk",
        "perl",
        "ruby",
        "node",
        "php",
        "lua",
        "tclsh",
        "vi",
        "vim",
        "ed",
        "expect",
        "make",
    }
)
_MOVES: Final = frozenset({"cd", "pushd", "popd"})
_WRITTEN: Final = ("/tmp", "/dev/shm", "/rapha/out", "~")  # noqa: S108  folders inside the sandbox
_FIND_RUNS: Final = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
_MAX_REASON: Final = 100
_MAX_DEPTH: Final = 8


@dataclass(slots=True)
class Script:
    """What a script does.

    Attributes:
        notes: grave where it calls something that moves data or hides what it calls.
        starts: argvs of Python and of other scripts, with `?` where a word can't be told.
        search: values that it gives to PYTHONPATH.
        moves: it changes the folder that relative names start from.
    """

    notes: list[Note] = field(default_factory=list)
    starts: list[tuple[str, ...]] = field(default_factory=list)
    search: list[str] = field(default_factory=list)
    moves: bool = False


def read(text: str, rules: RuleSet, depth: int = 0) -> Script:
    """Judge a shell script. A script that can't be followed gives one note, never an error."""
    script = Script()
    try:
        listed = commands(text)
    except ShellError as error:
        script.notes.append(Note("image.dynamic_code", 1, f"The script can't be followed: {error}."))
        return script
    _variables(((name, UNKNOWN) for name in defaulted(text)), 1, script)
    defined = _functions(listed)
    for command in listed:
        _judge(command, script, rules, defined, depth)
    return script


def _functions(listed: Sequence[Command]) -> frozenset[str]:
    """Names that the script gives to functions: `name () {` reads as a command before its brackets."""
    found = set()
    for index, command in enumerate(listed):
        after = listed[index + 1] if index + 1 < len(listed) else None
        words = [word.text for word in command.words]
        if words[:1] == ["function"] and len(words) > 1:
            found.add(words[1])
        elif len(words) == 1 and after is not None and [w.text for w in after.words][:1] == ["{"]:
            found.add(words[0])
    return frozenset(found)


def _judge(command: Command, script: Script, rules: RuleSet, defined: frozenset[str], depth: int) -> None:
    for target in command.targets:
        if target.startswith(("/dev/tcp/", "/dev/udp/", f"/dev/{UNKNOWN}")):
            script.notes.append(Note("image.network_module", command.line, "It opens a connection."))
    _variables(assigned([word.text for word in command.words]), command.line, script)
    words = _called(command.words, rules)
    if not words or words[0].text in defined:
        return
    for grave, rule, reason in _verdicts(words, command, script, rules, depth):
        script.notes.append(Note(rule, command.line, reason[:300], grave))


def _variables(found: Iterable[tuple[str, str]], line: int, script: Script) -> None:
    """What setting variables changes in what is loaded."""
    for variable, value in found:
        if variable == "PYTHONPATH":
            script.search.append(value)
        elif steers(variable, value):
            reason = f"It sets `{variable[:_MAX_REASON]}` or the like, which loads other code."
            script.notes.append(Note("image.dynamic_code", line, reason))


def _called(words: Sequence[Word], rules: RuleSet) -> list[Word]:
    """The words from the command's name on, without keywords, assignments and prefixes such as `env`.

    Which options of a prefix take a value is not known: behind one, a network program counts anywhere.
    """
    rest, prefixed = list(words), False
    while rest:
        name = rest[0].text
        base = posixpath.basename(name)
        if (rest[0].plain and name in _KEYWORDS) or _assigns(name):
            rest.pop(0)
        elif (rest[0].plain and name in _CLOSING) or (base == "command" and _asks(rest)):
            return []
        elif base in _PREFIXES and len(rest) > 1:
            rest.pop(0)
            prefixed = True
            # Options and their values: `timeout -k 5 60 prog`, `env -u X A=1 prog`.
            while len(rest) > 1 and (
                rest[0].text[:1] == "-" or _assigns(rest[0].text) or _number(rest[0].text)
            ):
                rest.pop(0)
        else:
            break
    if prefixed:
        bases = [posixpath.basename(word.text) for word in rest]
        first = next((i for i, base in enumerate(bases) if base in rules.shell_network), 0)
        return rest[first:]
    return rest


def _asks(words: Sequence[Word]) -> bool:
    """`command -v curl` asks whether there is one."""
    return any(word.text in ("-v", "-V") for word in words[1:2])


def _assigns(text: str) -> bool:
    name, equals, _ = text.partition("=")
    return bool(equals) and name.rstrip("+").isidentifier()


def _number(text: str) -> bool:
    return text[:1].isdigit() and text.rstrip("smhdkKMG").replace(".", "").isdigit()


def _verdicts(
    words: list[Word], command: Command, script: Script, rules: RuleSet, depth: int
) -> Iterator[tuple[bool, str, str]]:
    name = words[0].text
    base = posixpath.basename(name)
    texts = tuple(word.text for word in words)
    script.moves = script.moves or base in _MOVES
    if base in _MOVES and (len(texts) == 1 or texts[-1].startswith(_WRITTEN)):
        yield True, "image.dynamic_code", "It changes into a folder that the job itself fills."
    if base in rules.shell_network:
        yield True, "image.network_module", f"It calls `{name[:_MAX_REASON]}`."
    elif UNKNOWN in name:
        yield True, "image.dynamic_code", "It calls a command whose name is not written out."
    elif base == "trap" and len(texts) > 1 and UNKNOWN not in texts[1] and depth < _MAX_DEPTH:
        _adopt(script, read(texts[1], rules, depth + 1), command.line)
    elif base in _TEXT_RUNNERS:
        yield True, "image.dynamic_code", f"It runs text by `{base}`."
    elif base in SHELLS:
        yield from _shell(texts, command, script, rules, depth)
    elif base.startswith("python") or base in ("pypy", "pypy3"):
        yield from _python(texts, command, script)
    elif base in _LANGUAGES or (base == "find" and not _FIND_RUNS.isdisjoint(texts)):
        yield True, "image.subprocess", f"It runs code of `{base}`, which is not followed."
    elif "/" in name:
        script.starts.append(texts)
    elif base not in _PLAIN:
        yield False, "image.subprocess", f"It calls `{name[:_MAX_REASON]}`."


def _python(texts: tuple[str, ...], command: Command, script: Script) -> Iterator[tuple[bool, str, str]]:
    if command.here:
        script.starts.append((texts[0], "-c", command.here))
    elif command.piped and len(texts) == 1:
        yield True, "image.dynamic_code", "Python runs what another command writes."
    else:
        script.starts.append(texts)


def _shell(
    texts: tuple[str, ...], command: Command, script: Script, rules: RuleSet, depth: int
) -> Iterator[tuple[bool, str, str]]:
    options = [text for text in texts[1:] if text[:1] == "-"]
    if any("c" in option.lstrip("-") and not option.startswith("--") for option in options):
        code = next((t for t in texts[1:] if t[:1] != "-"), UNKNOWN)
        if UNKNOWN in code or depth >= _MAX_DEPTH:
            yield True, "image.dynamic_code", "A shell runs text that is not written out."
            return
        inner = read(code, rules, depth + 1)
        _adopt(script, inner, command.line)
    elif files := [text for text in texts[1:] if text[:1] != "-"]:
        script.starts.append(("sh", files[0]))
    elif command.here and depth < _MAX_DEPTH:
        inner = read(command.here, rules, depth + 1)
        _adopt(script, inner, command.line)
    else:
        yield True, "image.dynamic_code", "A shell runs what is written to it."


def _adopt(script: Script, inner: Script, line: int) -> None:
    script.notes += [Note(note.rule, line, note.reason, note.grave) for note in inner.notes]
    script.starts += inner.starts
    script.search += inner.search
    script.moves = script.moves or inner.moves
