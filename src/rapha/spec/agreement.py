"""The compute access agreement: who may do what, and whose keys count.

The hospital and the AI company both sign it. The coordinator introduces parties but is never asked who
they are: developer, approver, reviewer and node keys are pinned here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rapha.spec.base import PLAIN, Model, Money, Name, Sha256, Timestamp
from rapha.spec.job import Assurance, Purpose

PublicKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{59}=$")]
"""Base64 of an Ed25519 SubjectPublicKeyInfo (44 bytes)."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PLAIN)]


class Party(Model):
    """An organisation and its key."""

    id: Name
    name: Label
    key: PublicKey


class Person(Model):
    """A person who signs for a party."""

    name: Label
    role: Label
    key: PublicKey


class NodeIdentity(Model):
    """A hospital node: `receipt_key` lives inside the measured boundary."""

    id: Name
    receipt_key: PublicKey


class Documents(Model):
    """SHA-256 of the reviews and contracts that stand behind the agreement."""

    security_review: Sha256
    privacy_review: Sha256
    baa_or_dpa: Sha256


class Agreement(Model):
    """What a hospital and an AI company agreed; signed by both.

    `measurements` are the node builds that the parties accept; an empty list refuses, as does an empty
    list of any keys. `billing_bucket` is the step in which records and patients are told and billed.
    """

    id: Name
    hospital: Party
    company: Party
    not_before: Timestamp
    not_after: Timestamp
    developers: Annotated[tuple[Person, ...], Field(min_length=1, max_length=64)]
    approvers: Annotated[tuple[Person, ...], Field(min_length=1, max_length=64)]
    approvals_required: Annotated[int, Field(ge=1, le=64)]
    reviewers: Annotated[tuple[Person, ...], Field(min_length=1, max_length=64)]
    reviews_required: Annotated[int, Field(ge=1, le=64)]
    nodes: Annotated[tuple[NodeIdentity, ...], Field(min_length=1, max_length=256)]
    measurements: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=64)]
    datasets: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
    purposes: Annotated[tuple[Purpose, ...], Field(min_length=1, max_length=64)]
    max_output_bytes: Annotated[int, Field(ge=0, le=2**40)]
    price_per_record: Money
    billing_bucket: Annotated[int, Field(ge=1, le=10**6)]
    currency: Literal["USDC"]
    least_assurance: Assurance
    documents: Documents | None

    @model_validator(mode="after")
    def _consistent(self) -> Agreement:
        if self.not_before >= self.not_after:
            raise ValueError("not_before must be earlier than not_after")
        for people, required, name in (
            (self.approvers, self.approvals_required, "approvals_required"),
            (self.reviewers, self.reviews_required, "reviews_required"),
        ):
            if len({p.key for p in people}) < required:
                raise ValueError(f"{name} is more than there are keys")
        self._check_roles()
        return self

    def _check_roles(self) -> None:
        # One person may have several roles on one side; nobody checks on both sides, and no node is a person.
        company = {self.company.key, *(p.key for p in self.developers)}
        hospital = {self.hospital.key, *(p.key for p in (*self.approvers, *self.reviewers))}
        nodes = [n.receipt_key for n in self.nodes]
        if company & hospital:
            raise ValueError("a key of the company's side is also on the hospital's side")
        if len(set(nodes)) != len(nodes) or set(nodes) & (company | hospital):
            raise ValueError("a node's receipt key is another node's or a person's key")
        if len({n.id for n in self.nodes}) != len(nodes):
            raise ValueError("two nodes have the same id")
