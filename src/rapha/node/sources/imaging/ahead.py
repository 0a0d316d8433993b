"""Several calls at a time, their results in order, and no further ahead: for what waits for a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    call: Callable[[T], R], works: Iterable[T], parallel: int, hasten: Callable[[], None] | None = None
) -> Iterator[R]:
    """`call` of each of `works`, in their order, `parallel` of them at a time.

    No more than that are begun and not yet taken, so that results don't pile up. With 1, a call is made when
    its result is asked for, by the caller's own thread.

    Args:
        hasten: called where results of calls that were begun are no longer wanted, so that they end soon.

    Raises:
        Exception: what a call raises, in its turn; those behind it are cancelled or waited for.
    """
    if parallel == 1:
        yield from map(call, works)
        return
    pending: deque[Future[R]] = deque()
    source = iter(works)
    with ThreadPoolExecutor(parallel, "ahead") as executor:
        try:
            while True:
                room = parallel - len(pending)
                pending.extend(executor.submit(call, work) for work in islice(source, room))
                if not pending:
                    return
                yield pending.popleft().result()
        except BaseException:
            if hasten is not None and not all(future.done() for future in pending):
                hasten()
            raise
        finally:
            for future in pending:
                future.cancel()
