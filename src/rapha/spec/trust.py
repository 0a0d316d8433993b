"""The trust file: the only place from which a verifier takes its roots."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rapha.spec.agreement import Label, PublicKey
from rapha.spec.base import Model, One, Profile, Sha256
from rapha.spec.job import Assurance


class LogRoot(Model):
    """A transparency log: the origin line of its checkpoints and its key."""

    origin: Label
    key: PublicKey


Keys = Annotated[tuple[PublicKey, ...], Field(min_length=1, max_length=64)]


class Trust(Model):
    """Roots and demands of one verifier.

    `simulated_tee` roots exist in the demo profile only: a production trust file can't name any.
    """

    version: One
    profile: Profile
    hospitals: Keys
    companies: Keys
    log: LogRoot
    policy_bundles: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=64)]
    simulated_tee: tuple[PublicKey, ...]
    least_assurance: Assurance

    @model_validator(mode="after")
    def _profile(self) -> Trust:
        if self.profile == "production" and (self.simulated_tee or self.least_assurance == "simulated"):
            raise ValueError("a production trust file can't accept simulated evidence")
        if self.profile == "demo" and not self.simulated_tee:
            raise ValueError("a demo trust file names the simulated TEE's root")
        return self
