"""Puts a node together: the one place that knows both the node and the simulated TEE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapha.node import config as configs
from rapha.node.config import NodeConfig
from rapha.node.doctor import Check, checks
from rapha.node.node import Node
from rapha.node.posture.interface import Producer
from rapha.node.posture.measurement import measure
from rapha.node.serve import assemble
from rapha.runtime.sandbox.drivers import driver
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.refusals import Refused
from rapha.testing.simulated_tee import SimulatedTee


@contextmanager
def node_at(path: Path) -> Iterator[Node]:
    """The node whose `node.json` is `path`. Raises `Refused` where something is missing."""
    config = configs.load(path)
    runtime = PythonRuntime.discover(config.runtime)
    with assemble(path, config, runtime, driver(config.sandbox), producer(path, config, runtime)) as node:
        yield node


def producer(path: Path, config: NodeConfig, runtime: PythonRuntime) -> Producer:
    """Evidence for the profile: the simulated TEE in a demo, and hardware or nothing in production.

    Raises:
        Refused: `posture.evidence_invalid` in production, where no producer is installed.
    """
    if config.profile == "production":
        raise Refused("posture.evidence_invalid", "no attestation hardware answers on this host")
    return SimulatedTee.load(path.parent / config.keys, measure(runtime.digest))


def examine(path: Path) -> list[Check]:
    """Every requirement of the profile, looked at on this host."""
    config = configs.load(path)
    return checks(path, config, driver(config.sandbox), lambda: producer(path, config, _runtime(config)))


def _runtime(config: NodeConfig) -> PythonRuntime:
    return PythonRuntime.discover(config.runtime)
