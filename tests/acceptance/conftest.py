"""Real processes, shared by the tests of this folder: starting them takes longer than most jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rapha.testing import stack as stacks
from rapha.testing.stack import Delivered, Stack


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A coordinator and a node with people who sign, all running."""
    root = tmp_path_factory.mktemp("running")
    with stacks.stack(root) as stack, stacks.node(stack.world.node), stacks.people(stack.world):
        yield stack


@pytest.fixture(scope="session")
def delivered(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """The main job, run once."""
    return stacks.deliver(running, tmp_path_factory.mktemp("delivered"))
