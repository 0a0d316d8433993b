"""What a pickle would import and call, from its opcodes. Nothing is unpickled.

An unpickler runs opcodes as it reads them, so whatever stands before a break has been run. Globals are
allowed by name and all others are named in a finding: lists of bad ones are known to leak.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from dataclasses import dataclass, field
from typing import BinaryIO, Final

_MAX_STREAMS: Final = 64
_MAX_TEXT: Final = 300
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\Z")
_CALLING: Final = frozenset({"REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})
_EXTENSIONS: Final = frozenset({"EXT1", "EXT2", "EXT4"})
_PUT: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK: Final = object()


@dataclass(slots=True)
class Walked:
    """What the opcodes of a file say.

    Attributes:
        opcodes: how many were read before the end or the first break.
        ended: at least one pickle came to its STOP.
        binary: the first opcode is PROTO, which text never begins with.
        calls: an opcode that calls something was read.
        globals: `module.name` of each import; `?` stands for what is computed or unreadable.
        problem: why the rest could not be followed, or empty.
    """

    opcodes: int = 0
    ended: bool = False
    binary: bool = False
    calls: bool = False
    globals: dict[str, None] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_pickle(self) -> bool:
        """Whether the bytes are a pickle, and not text that happens to begin like one."""
        if self.binary:
            return self.ended or self.opcodes > 1
        return self.calls and any(_DOTTED.match(name) or "?" in name for name in self.globals)


def walk(stream: BinaryIO, most: int) -> Walked:
    """Read pickles from `stream`, one after another, at most `most` opcodes. Never raises for their contents.

    Source: pickletools and PEP 3154 (protocol 4), PEP 574 (protocol 5).
    """
    walked = Walked()
    for number in range(_MAX_STREAMS):
        start = stream.tell()
        machine = _Machine(walked)
        if not machine.run(stream, most) or walked.problem:
            # What follows the last pickle is data, as in PyTorch's old format, unless it begins like one.
            if number and not machine.telling:
                walked.problem = ""
            return walked
        if stream.tell() == start:
            return walked
    walked.problem = f"more than {_MAX_STREAMS} pickles follow one another"
    return walked


class _Machine:
    """The unpickler's stack and memo, holding only the texts that a global's name may come from."""

    def __init__(self, walked: Walked) -> None:
        self._walked = walked
        self._first = walked.opcodes == 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self.telling = False

    def run(self, stream: BinaryIO, most: int) -> bool:
        """Read one pickle; False where it does not come to its STOP."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its texts, which are the submitter's
            return self._run(stream, most)

    def _run(self, stream: BinaryIO, most: int) -> bool:
        walked = self._walked
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if walked.opcodes >= most:
                    self.telling = True
                    walked.problem = f"it has more than {most} opcodes"
                    return False
                if self._first:
                    walked.binary = opcode.name == "PROTO"
                    self._first = False
                walked.opcodes += 1
                if opcode.name == "STOP":
                    walked.ended = True
                    return True
                self._step(opcode, argument)
        except (ValueError, OverflowError, IndexError, KeyError, MemoryError, RecursionError) as error:
            walked.problem = str(error)[:_MAX_TEXT] or "it breaks off"
        return False

    def _step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        name = opcode.name
        if name in _CALLING:
            self._walked.calls = self.telling = True
        if name in ("GLOBAL", "INST"):
            self._name(*_split(argument))
        elif name in _EXTENSIONS:
            self._name("copyreg extension", str(argument))
        elif name in _PUT:
            key = len(self._memo) if name == "MEMOIZE" else argument
            self._memo[_integer(key)] = self._stack[-1]
            return
        elif name in _GET:
            self._stack.append(self._memo.get(_integer(argument)))
            return
        if name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._name(module, attribute)
            self._stack.append(None)
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name == "POP":
            self._stack.pop()
        else:
            self._generic(opcode, argument)

    def _generic(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        before = opcode.stack_before
        if pickletools.markobject in before:
            while self._stack.pop() is not _MARK:
                pass
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self._pop()
        pushed = argument if isinstance(argument, str) and not opcode.stack_before else None
        self._stack += [pushed if opcode.name != "INST" else None for _ in opcode.stack_after]

    def _pop(self) -> object:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("an opcode reaches below a mark")
        return value

    def _name(self, module: object, attribute: object) -> None:
        self.telling = True
        parts = [part if isinstance(part, str) else "?" for part in (module, attribute)]
        if len(self._walked.globals) < 256:
            self._walked.globals[".".join(parts)[:_MAX_TEXT]] = None
        else:
            self._walked.globals["? (more than 256)"] = None


def _split(argument: object) -> tuple[str, str]:
    """The module and the name of GLOBAL and INST, which pickletools joins with a space."""
    module, _, attribute = str(argument).partition(" ")
    return module, attribute


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("a memo key is no number")
    return value
