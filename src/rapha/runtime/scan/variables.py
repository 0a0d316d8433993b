"""What environment variables and Python's own options make a program load besides what it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from rapha.runtime.scan.shell import UNKNOWN

# What `-X` may say; `pycache_prefix` would load bytecode from a folder of its own, which is not followed.
_PLAIN_X: Final = frozenset(
    {"importtime", "faulthandler", "utf8", "dev", "no_debug_ranges", "tracemalloc", "showrefcount"}
)
_EXPORTERS: Final = frozenset({"export", "declare", "typeset", "readonly", "local", "env"})
_DEFAULT: Final = re.compile(r"\$\{\s*(\w+):?=")
_STEERING: Final = frozenset(
    {"PATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPLATLIBDIR"}
    | {"PYTHONBREAKPOINT", "PYTHONUSERBASE", "PYTHONEXECUTABLE", "BASH_ENV", "ENV", "PROMPT_COMMAND"}
    | {"GCONV_PATH", "SHELLOPTS", "BASHOPTS"}
)


def is_plain(flag: str, value: str) -> bool:
    """Whether Python's option `-X value` or `-W value` loads nothing.

    A warning's category is imported where it names a module (Library Reference, warnings).
    """
    return value.partition("=")[0] in _PLAIN_X if flag == "X" else "." not in value


def steers(variable: str, value: str) -> bool:
    """Whether setting an environment variable makes programs load other code than that which is followed.

    Two don't. PYTHONPATH is followed, and a library with the name of one of the base's counts as loaded
    wherever it lies, so that LD_LIBRARY_PATH adds nothing.
    """
    if variable == "PYTHONWARNINGS":
        return not is_plain("W", value)
    return (variable.startswith("LD_") and variable != "LD_LIBRARY_PATH") or variable in _STEERING


def assigned(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each variable that a shell command may set, with `?` for what can't be told.

    Besides `name=value`, a bare name counts: `read`, `for`, `printf -v`, `getopts` and `export` take one.
    """
    if words[:1] in (["echo"], ["unset"], ["test"], ["["]):
        return
    for word in words:
        name, equals, value = word.partition("=")
        name = name.rstrip("+")
        if equals:
            yield name, value
        elif name == "PYTHONPATH" or steers(name, "?."):
            yield name, UNKNOWN
        elif UNKNOWN in name and words[0] in _EXPORTERS:
            yield "PATH", UNKNOWN  # which one it is can't be told: the worst


def defaulted(text: str) -> Iterator[str]:
    """Variables that `${name:=value}` sets (POSIX shell, 2.6.2)."""
    yield from _DEFAULT.findall(text)
