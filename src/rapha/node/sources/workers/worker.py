"""The process that workers are forked from, and the worker.

    python -I -B -m rapha.node.sources.workers.worker CONTROL PARENT

It imports the task once, so that a worker starts in milliseconds, however many a hostile archive kills. It
never sees a record, and no worker can reach it: each has its own socket to the pool, and no other.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import io
import json
import mmap
import os
import socket
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import BinaryIO, Final, NoReturn

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import frames, walls
from rapha.node.sources.workers.interface import InParts, Item, Task, Unusable, Work
from rapha.runtime.sandbox.launcher import system

FORK: Final = b"f"
"""The pool asks for a worker, with the socket it is to use and, where there is output, the memory for it.
The answer brings the worker's pidfd."""
_SOCKET, _FOLDER = 3, 4
_BUFFER: Final = 2**16


@dataclass(frozen=True, slots=True)
class Order:
    """What workers are for.

    Attributes:
        unsafe_file: a file to run in place of a task; for the tests of the walls alone.
        folder: a descriptor of the pool's folder comes with the order.
    """

    task: str
    unsafe_file: str | None
    folder: bool
    output_bytes: int
    memory_bytes: int
    file_bytes: int

    def encode(self, setup: bytes) -> bytes:
        """One line and the setup, after their length."""
        body = json.dumps(asdict(self)).encode() + b"\n" + setup
        return len(body).to_bytes(8, "little") + body


def main(control_fd: int, parent: int) -> int:
    """Fork workers until the pool is gone. Returns the exit status."""
    with socket.socket(fileno=control_fd) as control:
        try:
            with walls.required():
                walls.begin(parent)
            order, setup, folder = _receive_order(control)
            work = _make(order)(setup)
            with walls.required():
                program, swapping = walls.program(), walls.swapping()
                space = walls.address_space() + order.memory_bytes + order.output_bytes
                walls.enclose(parent, folder)
        except walls.WallError as error:
            control.sendall(frames.FAILED + f"wall: {error}\n".encode())
            return 1
        except Exception as error:  # noqa: BLE001  its words may quote what the setup says
            control.sendall(frames.FAILED + f"task: {type(error).__name__} at {_place(error)}\n".encode())
            return 1
        gc.freeze()  # a collection in a worker then need not touch, and so copy, what is there by now
        control.sendall(frames.READY)
        ours = os.getpid()

        def confine() -> None:
            walls.shut(ours, space, swapping=swapping, program=program)

        _fork_on_demand(control, _Worker(work, order, folder, confine))
    return 0


def _receive_order(control: socket.socket) -> tuple[Order, bytes, int | None]:
    head, descriptors, _, _ = socket.recv_fds(control, 8, 1)
    left = int.from_bytes(head, "little")
    parts = []
    while left and (part := control.recv(left)):
        parts.append(part)
        left -= len(part)
    line, _, setup = b"".join(parts).partition(b"\n")
    return Order(**json.loads(line)), setup, descriptors[0] if descriptors else None


def _make(order: Order) -> Callable[[bytes], Work]:
    """The task's `make`."""
    module = _unsafe(order.unsafe_file) if order.unsafe_file else importlib.import_module(Task(order.task))
    made: Callable[[bytes], Work] = module.make
    return made


def _unsafe(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("unsafe_task", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fork_on_demand(control: socket.socket, worker: _Worker) -> None:
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if asked != FORK:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        pid = os.fork()
        if pid == 0:
            worker.be(control, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)  # not reaped before the next request, so it is this child
        socket.send_fds(control, [FORK], [pidfd])
        os.close(pidfd)


@dataclass(frozen=True, slots=True)
class _Worker:
    work: Work
    order: Order
    folder: int | None
    confine: Callable[[], None]

    def be(self, control: socket.socket, pool: int, memory: int | None = None) -> NoReturn:
        """Become a worker; never returns into the frames it was forked from."""
        status = 1
        try:
            control.close()
            out = memoryview(b"")
            if memory is not None:
                out = memoryview(mmap.mmap(memory, self.order.output_bytes))
            self._keep_only(pool)
            try:
                with walls.required():
                    self.confine()
            except walls.WallError as error:
                _write(frames.FAILED + f"wall: {error}\n".encode())
            else:
                _write(frames.READY)
                self._serve(out)
                status = 0
        except BrokenPipeError:
            pass  # the pool is gone, or done with this worker
        finally:
            os._exit(status)

    def _keep_only(self, pool: int) -> None:
        """The socket and the folder, under fixed numbers; all other descriptors go."""
        if self.folder is not None:
            spare = os.dup(self.folder)
            pool = os.dup(pool)  # neither may lie where the other is put
            os.dup2(spare, 100)
            os.dup2(pool, 101)
            os.dup2(100, _FOLDER)
            os.dup2(101, _SOCKET)
        else:
            os.dup2(pool, _SOCKET)
        os.closerange(_SOCKET + 1 + (self.folder is not None), 2**16)

    def _serve(self, out: memoryview) -> None:
        with io.BufferedReader(io.FileIO(_SOCKET, closefd=False), _BUFFER) as stream:
            for ordinal, item in frames.read_items(stream):
                verdict, reply, spent = self._attempt(ordinal, item, out)
                _write(frames.encode_answer(ordinal, verdict, reply, spent=spent))

    def _attempt(self, ordinal: int, item: Item, out: memoryview) -> tuple[Quarantine, bytes, bool]:
        """Verdict, reply, and whether memory ran out."""
        stored: list[BinaryIO] = []
        try:
            stored += map(io.BytesIO, item.data)
            for path in item.paths:
                stored.append(_open(path, self.order.file_bytes))
            with memoryview(out) as view:
                if isinstance(self.work, InParts):
                    second = self.work.begin(item.args, stored, view)
                    _write(frames.encode_mark(ordinal))
                    reply = bytes(second())
                else:
                    reply = bytes(self.work(item.args, stored, view))
        except Unusable as unusable:
            return unusable.quarantine or Quarantine.FILE_INVALID, b"", False
        except MemoryError:
            return Quarantine.TOO_LARGE, b"", True
        except Exception:  # noqa: BLE001  a decoder may raise anything at all
            return Quarantine.FILE_INVALID, b"", False
        finally:
            for file in stored:
                file.close()
        if len(reply) > frames.MAX_REPLY:
            return Quarantine.TOO_LARGE, b"", False
        return Quarantine.NONE, reply, False


def _open(path: str, most: int) -> BinaryIO:
    """A regular file below the folder, no link followed on the way, and none that blocks to be opened.

    Raises:
        Unusable: FILE_UNREADABLE or TOO_LARGE.
    """
    try:
        fd = system.open_in(_FOLDER, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        full = error.errno in (errno.EMFILE, errno.ENFILE)
        raise Unusable(Quarantine.TOO_LARGE if full else Quarantine.FILE_UNREADABLE) from None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return io.BufferedReader(io.FileIO(fd), _BUFFER)
    os.close(fd)
    raise Unusable(Quarantine.TOO_LARGE if stat.S_ISREG(found.st_mode) else Quarantine.FILE_UNREADABLE)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_SOCKET, view) :]


def _place(error: BaseException) -> str:
    """Where it was raised, without its words."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
