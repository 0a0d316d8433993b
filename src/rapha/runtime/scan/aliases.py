"""Files under the names that symbolic links give them: an import follows links, and so does the scanner."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Mapping
from typing import Final

MAX_ALIASES: Final = 100_000
_MAX_DEPTH: Final = 4
_CODE: Final = (".py", ".pyw", ".pyc", ".so")


def aliases(
    links: Mapping[str, str], own: Collection[str], find: Callable[[str], str]
) -> tuple[dict[str, str], bool]:
    """The submitter's files by each other name that a link gives them, and whether those are all.

    Below a link to a folder, only what an import loads is listed. A link into a folder that holds the link
    gives what is there names without end.

    Args:
        links: target by path of each symbolic link.
        own: the submitter's paths, links among them.
        find: the path that a path means after links.
    """
    code = sorted(path for path in own if path not in links and path.endswith(_CODE))
    inner = sorted(links)
    found: dict[str, str] = {}
    pending = [(link, find(link), 0, link in own) for link in inner]
    while pending:
        name, real, depth, mine = pending.pop()
        if real in own and real not in links:
            found[name] = real
            continue
        prefix = real + "/" if real else ""
        listed = _below(code, prefix)
        if listed and mine and (name.startswith(prefix) or depth > _MAX_DEPTH):
            return found, False
        found.update({f"{name}/{path[len(prefix) :]}": path for path in listed})
        if depth <= _MAX_DEPTH and not name.startswith(prefix):
            more = ((f"{name}/{link[len(prefix) :]}", find(link)) for link in _below(inner, prefix))
            pending += [(new, target, depth + 1, mine) for new, target in more]
        if len(found) + len(pending) > MAX_ALIASES + len(inner):
            return found, False
    return found, True


def _below(paths: list[str], prefix: str) -> list[str]:
    """Those of the sorted `paths` that begin with `prefix`, which ends with a slash; '' is the root."""
    if not prefix:
        return paths
    start = bisect.bisect_left(paths, prefix)
    end = bisect.bisect_left(paths, prefix[:-1] + chr(ord("/") + 1))
    return paths[start:end]
