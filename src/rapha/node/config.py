"""The node's configuration file and what is loaded from beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rapha.evidence import canonical, dsse
from rapha.evidence.agreement import open_agreement
from rapha.evidence.steps.gates import policy_digest
from rapha.spec.agreement import Agreement, Label
from rapha.spec.base import Model, Name, One, Profile
from rapha.spec.lan import ranges
from rapha.spec.receipt import GapMode, ImageDigest, InterfaceName, Network
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust


class Coordinator(Model):
    """Where the node dials out to, and the name that its signed requests are for."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)]
    audience: Label


class Waits(Model):
    """How long the node waits for people and for the researcher's client, in seconds."""

    challenge_s: Annotated[int, Field(ge=1, le=86400)] = 120
    ticket_s: Annotated[int, Field(ge=1, le=86400)] = 120
    approval_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 7 * 86400
    review_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 7 * 86400


class AirGapConfig(Model):
    """How `wan_interface` is severed.

    Attributes:
        mode: `nftables` drops every packet but those of `lan`; `link` takes the interface down.
        lan: ranges that stay reachable, because the sources need them.
        socket: where the air-gap helper listens.
        hold: folder of the lock that says "a job lives"; the helper's user must be able to read it.
    """

    mode: GapMode = "nftables"
    lan: Annotated[tuple[Network, ...], Field(max_length=64)] = ()
    socket: Annotated[str, Field(min_length=1, max_length=100)] = "/run/rapha/airgap.sock"
    hold: Annotated[str, Field(min_length=1, max_length=1000)] = "/run/rapha/hold"

    @model_validator(mode="after")
    def _networks(self) -> Self:
        ranges(self.lan)
        if self.lan and self.mode == "link":
            raise ValueError("an interface that is down reaches no range: name none, or use nftables")
        return self


class Preparation(Model):
    """What opening and decoding records may cost.

    Attributes:
        workers: processes that parse and decode; 0 is one a processor.
        memory_bytes: of decoded records held in memory; what is larger goes into encrypted shards below
            `state`, which needs room on its disk.
        limit_s: the longest that opening or decoding may take, so that no server can hold a job for ever.
    """

    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    memory_bytes: Annotated[int, Field(ge=0, le=2**53 - 1)] = 2**32
    limit_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 4 * 3600


class BaseImage(Model):
    """A runtime that full images may stand on.

    Attributes:
        name: for people.
        layers: its layers' diff ids, lowest first (image-spec 1.1, config.md).
    """

    name: Name
    layers: Annotated[tuple[ImageDigest, ...], Field(min_length=1, max_length=128)]


class NodeConfig(Model):
    """`node.json`. Relative paths are relative to the file.

    Attributes:
        wan_interface: the interface to sever while a job trains; else `wan_waiver` says why not.
        air_gap: how it is severed.
        images: the allow-list of runtimes for full images; empty means that only slim ones run.
        preparation: what decoding records may cost.
        quantum_s: outcomes are published at multiples of this many seconds after training began.
        runtime: distributions that a job may import.
        runtime_name: what an image must ask for.
    """

    version: One
    profile: Profile
    node: Name
    coordinator: Coordinator
    state: str = "state"
    keys: str = "keys"
    datasets: tuple[str, ...]
    agreements: str = "agreements"
    trust: str = "trust.json"
    policy_bundles: tuple[str, ...]
    runtime: Annotated[tuple[str, ...], Field(min_length=1)]
    runtime_name: Name
    images: Annotated[tuple[BaseImage, ...], Field(max_length=64)] = ()
    sandbox: Literal["bubblewrap", "gvisor"] = "bubblewrap"
    wan_interface: InterfaceName | None = None
    wan_waiver: Label | None = None
    air_gap: AirGapConfig = AirGapConfig()
    quantum_s: Annotated[int, Field(ge=1, le=3600)] = 60
    waits: Waits = Waits()
    preparation: Preparation = Preparation()
    max_image_bytes: Annotated[int, Field(ge=1, le=2**40)] = 2**31


def load(path: Path) -> NodeConfig:
    """Read `node.json`.

    Raises:
        Refused: `node.config` naming the field.
    """
    try:
        return NodeConfig.parse(canonical.loads(path.read_bytes()))
    except OSError as error:
        raise Refused("node.config", f"{path}: {error.strerror}") from None
    except Refused as refused:
        raise Refused("node.config", f"{path.name}: {refused.detail}") from None


def load_trust(path: Path) -> Trust:
    """Read a trust file.

    Raises:
        Refused: `node.config`.
    """
    try:
        return Trust.parse(canonical.loads(path.read_bytes()))
    except OSError as error:
        raise Refused("node.config", f"{path}: {error.strerror}") from None
    except Refused as refused:
        raise Refused("node.config", f"{path.name}: {refused.detail}") from None


def load_agreements(folder: Path, trust: Trust) -> list[tuple[Agreement, str, dsse.EnvelopeDict]]:
    """Every agreement of the folder that both parties signed, with its digest and envelope.

    Raises:
        Refused: `policy.agreement`, or as `canonical.loads` and `open_agreement`; one bad file
            stops the node, since it may be the one that narrows.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            envelope = canonical.loads(path.read_bytes())
        except OSError as error:
            raise Refused("policy.agreement", f"{path}: {error.strerror}") from None
        opened = open_agreement(envelope, trust)
        found.append((opened.terms, opened.digest, envelope))
    return found


def bound_policy(trust: Trust) -> str:
    """The policy digest that attestation binds."""
    return policy_digest(trust.policy_bundles)
