"""Which commands a shell script calls. Nothing is expanded or run.

A bounded reader of the shell's grammar (POSIX.1-2024, Shell Command Language 2.3 to 2.10, and bash's
process substitutions), which is enough to tell a command from an argument, a comment or a here-document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

MAX_SCRIPT: Final = 1024 * 1024
_MAX_COMMANDS: Final = 20_000
_MAX_DEPTH: Final = 24
_BLANK: Final = " \t\r"
_BREAKS: Final = ";&|\n()"
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*(?:\[[^\]]*\])?\+?=")
_HERE: Final = re.compile(r"<<(-?)[ \t]*")
_REDIRECTION: Final = re.compile(r"\d*(?:<>|>>|>\||>&|<&|&>>|&>|<<<|<|>)")
_NAME: Final = re.compile(r"\w+", re.ASCII)
_ARITHMETIC: Final = re.compile(r"\$?\(\((?:[^()$`]|\([^()$`]*\))*\)\)")
UNKNOWN: Final = "?"
"""Stands in a word for what an expansion gives."""


class ShellError(Exception):
    """The script can't be followed to its end."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word after quoting: `text` has `?` for each expansion; `plain` is one without any, or a quote."""

    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command: its words, its redirections' targets, and its first line, from 1.

    `piped` says that it reads what another command writes.
    """

    words: tuple[Word, ...]
    targets: tuple[str, ...]
    line: int
    piped: bool
    here: str = ""


def commands(text: str) -> list[Command]:
    """The simple commands of a script, those inside substitutions included.

    Raises:
        ShellError: over a limit, or cut off inside a quote or substitution.
    """
    if len(text) > MAX_SCRIPT:
        raise ShellError(f"it is over {MAX_SCRIPT} characters")
    found: list[Command] = []
    _Reader(text, 1, found, 0).run()
    return found


class _Reader:
    def __init__(self, text: str, line: int, found: list[Command], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ShellError("it is nested too deeply")
        self._text = text
        self._at = 0
        self._counted = 0
        self._base = line
        self._found = found
        self._depth = depth
        self._words: list[Word] = []
        self._targets: list[str] = []
        self._start = line
        self._piped = False
        self._waiting: list[tuple[str, bool, bool, int]] = []
        self._here: dict[int, str] = {}

    def run(self) -> None:
        """Read to the end."""
        while self._at < len(self._text):
            self._next()
        self._end(False)

    def _line(self) -> int:
        # Counted onwards from the last question: from the start it would be quadratic.
        self._base += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._base

    def _next(self) -> None:
        char = self._text[self._at]
        if char in _BLANK or self._text.startswith("\\\n", self._at):
            self._at += 1 if char in _BLANK else 2
        elif char == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end
        elif (here := _HERE.match(self._text, self._at)) and self._text[self._at : self._at + 3] != "<<<":
            self._here_document(here)
        elif match := _REDIRECTION.match(self._text, self._at):
            self._redirect(match)
        elif (sums := _ARITHMETIC.match(self._text, self._at)) and not self._words:
            self._at = sums.end()
        elif char in _BREAKS:
            self._break(char)
        else:
            if not self._words:
                self._start = self._line()
            self._words.append(self._word())

    def _redirect(self, match: re.Match[str]) -> None:
        self._at = match.end()
        if self._at < len(self._text) and self._text[self._at] == "(":
            self._at += 1
            self._inside(self._closed(")"))
            return
        while self._at < len(self._text) and self._text[self._at] in _BLANK:
            self._at += 1
        word = self._word()
        if match.group().endswith("<<<"):
            self._here[len(self._found)] = word.text
        self._targets.append(word.text)

    def _break(self, char: str) -> None:
        pair = self._text[self._at : self._at + 2]
        piped = char == "|" and pair != "||"
        self._at += 2 if pair in ("||", "&&", ";;", "|&") else 1
        self._end(piped)
        if char == "\n":
            self._skip_here_documents()

    def _end(self, piped: bool) -> None:
        if self._words or self._targets:
            if len(self._found) >= _MAX_COMMANDS:
                raise ShellError(f"it has more than {_MAX_COMMANDS} commands")
            here = self._here.get(len(self._found), "")
            self._found.append(
                Command(tuple(self._words), tuple(self._targets), self._start, self._piped, here)
            )
        self._words, self._targets = [], []
        self._piped = piped

    def _here_document(self, match: re.Match[str]) -> None:
        self._at = match.end()
        start = self._at
        word = self._word()
        quoted = any(mark in self._text[start : self._at] for mark in "'\"\\")
        self._waiting.append((word.text, bool(match.group(1)), quoted, len(self._found)))

    def _skip_here_documents(self) -> None:
        for delimiter, tabs, quoted, command in self._waiting:
            begin = self._at
            while True:
                if self._at >= len(self._text):
                    body = self._text[begin:]
                    break
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line, start = self._text[self._at : end], self._at
                self._at = end + 1
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    body = self._text[begin:start]
                    break
            self._attach(command, body)
            if not quoted:
                self._expansions(body)
        self._waiting = []

    def _attach(self, index: int, body: str) -> None:
        if index < len(self._found):
            old = self._found[index]
            self._found[index] = replace(old, here=old.here + body)

    def _word(self) -> Word:
        """The word that starts here (2.2 Quoting, 2.6 Word Expansions)."""
        text, begin, plain = self._text, self._at, True
        parts: list[str] = []
        while self._at < len(text) and text[self._at] not in _BLANK + _BREAKS + "<>":
            char = text[self._at]
            if char == "\\":
                parts.append(text[self._at + 1 : self._at + 2].replace("\n", ""))
                self._at += 2
            elif char == "'":
                end = text.find("'", self._at + 1)
                if end < 0:
                    raise ShellError("a quote is not closed")
                parts.append(text[self._at + 1 : end])
                self._at = end + 1
            elif char == '"':
                parts.append(self._double())
            elif char in "$`":
                parts.append(self._expansion())
            else:
                parts.append(char)
                self._at += 1
                continue
            plain = False
        if self._at == begin:
            self._at += 1
        return Word("".join(parts), plain)

    def _double(self) -> str:
        parts: list[str] = []
        self._at += 1
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return "".join(parts)
            if char == "\\":
                parts.append(self._text[self._at + 1 : self._at + 2])
                self._at += 2
            elif char in "$`":
                parts.append(self._expansion())
            else:
                parts.append(char)
                self._at += 1
        raise ShellError("a quote is not closed")

    def _expansion(self) -> str:
        text = self._text
        if text[self._at] == "`":
            end = self._at + 1
            while end < len(text) and text[end] != "`":
                end += 2 if text[end] == "\\" else 1
            if end >= len(text):
                raise ShellError("a substitution is not closed")
            inside, self._at = text[self._at + 1 : end], end + 1
            self._inside(inside.replace("\\`", "`"))
            return UNKNOWN
        if sums := _ARITHMETIC.match(text, self._at):
            self._at = sums.end()
            return UNKNOWN
        after = text[self._at + 1 : self._at + 2]
        if after == "(":
            self._at += 2
            self._inside(self._closed(")"))
        elif after == "{":
            self._at += 2
            self._expansions(self._closed("}"))
        elif after == "'":
            # `$'\x73h'` writes characters by their codes.
            self._at += 1
            end = self._at + 1
            while end < len(text) and text[end] != "'":
                end += 2 if text[end] == "\\" else 1
            body, self._at = text[self._at + 1 : end], end + 1
            return UNKNOWN if "\\" in body else body
        elif after and (after.isalnum() or after in "_@*#?-$!"):
            name = _NAME.match(text, self._at + 1)
            self._at = name.end() if name else self._at + 2
        else:
            self._at += 1
            return "$" if after != '"' else ""
        return UNKNOWN

    def _closed(self, closing: str) -> str:
        """The text up to the bracket that closes, over nested ones and quotes."""
        opening, depth, start = {")": "(", "}": "{"}[closing], 1, self._at
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "\\":
                self._at += 1
            elif char == "'" and closing == ")":
                self._at = self._text.find("'", self._at + 1)
                if self._at < 0:
                    raise ShellError("a quote is not closed")
            elif char == opening:
                depth += 1
            elif char == closing:
                depth -= 1
                if depth == 0:
                    self._at += 1
                    return self._text[start : self._at - 1]
            self._at += 1
        raise ShellError("a substitution is not closed")

    def _inside(self, text: str) -> None:
        found: list[Command] = []
        _Reader(text, self._line(), found, self._depth + 1).run()
        if len(self._found) + len(found) > _MAX_COMMANDS:
            raise ShellError(f"it has more than {_MAX_COMMANDS} commands")
        self._found += found
        self._here = {}

    def _expansions(self, text: str) -> None:
        inner = _Reader(text, self._line(), [], self._depth + 1)
        while inner._at < len(text):
            char = text[inner._at]
            if char == "\\":
                inner._at += 2
            elif char in "$`":
                inner._expansion()
            else:
                inner._at += 1
        self._found += inner._found
