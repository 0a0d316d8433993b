"""An encoder for each field of the surface: all that a job can make the field say is within its price.

Each takes a payload, any number below 2^64, and does what it can to have the field differ by it after records
were served. What comes out is counted: more outcomes than 2^price would be a channel that nobody is told of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from pydantic import ValidationError

from rapha.spec.price import PriceContext, price_bits
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.surface import Artifact, Quanta, Startup, Surface, bucketed, encode

JOB: Final = "a" * 64
PLAN: Final = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "int8",
            "tensors": [{"name": "w", "dtype": "F32", "shape": [1], "min": -1, "max": 1}],
        },
        "self_reported": {
            "file": "reported.json",
            "fields": [{"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 1}],
        },
        "trusted_metrics": ["brier"],
        "max_bytes": 4096,
    }
)
QUANTA: Final = Quanta(duration_s=60, cpu_s=60, memory_bytes=2**28)
CONTEXT: Final = PriceContext(PLAN, 100, 10, 600, 1200, 2**30, QUANTA)
ARTIFACTS: Final = tuple(
    Artifact(name=name, sha256="1" * 64, cipher_sha256="2" * 64, bytes=9) for name in PLAN.released_files
)
Encoder = Callable[[int], Surface]


def success(**fields: Any) -> Surface:
    told: dict[str, Any] = {
        "artifacts": ARTIFACTS,
        "metrics": {"brier": 0.1, "brier.low": 0.0, "brier.high": 0.2},
        "self_reported": {"loss": 0.5},
        "records_bucket": 100,
        "patients_bucket": 100,
        "usage": QUANTA.usage(60, 60, 2**28),
    }
    return Surface.success(JOB, PLAN, **(told | fields))


def ended(code: str, **fields: Any) -> Surface:
    # The text of a refusal is the job's to choose in the worst case.
    told = {"records_bucket": 10, "patients_bucket": 10}
    return Surface.ended(JOB, Refused(code, fields.pop("detail", "")), **(told | fields))


CODES: Final = sorted(REGISTRY)


def by_version(n: int) -> Surface:
    return Surface.parse(success().dump() | {"version": n})


def by_code(n: int) -> Surface:
    return ended(CODES[n % len(CODES)]) if n % 2 else success()


def by_detail(n: int) -> Surface:
    return ended("job.failed", detail=f"MRN {n}")


def by_startup(n: int) -> Surface:
    place = Startup(exception=f"Patient{n}", file="app/train.py", line=1 + n % 10**6)
    return ended("job.startup", startup=place)


def by_metrics(n: int) -> Surface:
    return success(metrics={"brier": round(n % 1001 / 1000, 3), "brier.low": 0.0, "brier.high": 1.0})


def by_metric_names(n: int) -> Surface:
    return success(metrics={f"brier.{n % 12}": 0.1})


def by_self_reported(n: int) -> Surface:
    return success(self_reported={"loss": n % 1000 / 1000})


def by_records(n: int) -> Surface:
    return success(records_bucket=min(100, bucketed(1 + n % 100, 10)))


def by_patients(n: int) -> Surface:
    return success(patients_bucket=min(100, bucketed(1 + n % 100, 10)))


def by_usage(n: int) -> Surface:
    return success(usage=QUANTA.usage(n % 601, 60, 2**28))


def by_cpu(n: int) -> Surface:
    return success(usage=QUANTA.usage(60, n % 1201, 2**28))


def by_memory(n: int) -> Surface:
    return success(usage=QUANTA.usage(60, 60, n * 1_000_003 % (2**30 + 1)))


def by_artifact_names(n: int) -> Surface:
    named = ARTIFACTS[0].model_copy(update={"name": f"model{n}.safetensors"})
    return success(artifacts=(named, *ARTIFACTS[1:]))


ENCODERS: Final[dict[str, tuple[Encoder, ...]]] = {
    "version": (by_version,),
    "job_id": (),  # the submitter's own words, fixed before a record is served
    "outcome": (by_code,),
    "code": (by_code,),
    "detail": (by_detail,),
    "startup": (by_startup,),
    "artifacts": (by_artifact_names,),  # their bytes are the weights', which the guard's own tests count
    "metrics": (by_metrics, by_metric_names),
    "self_reported": (by_self_reported,),
    "records_bucket": (by_records,),
    "patients_bucket": (by_patients,),
    "exit_class": (by_code,),
    "usage": (by_usage, by_cpu, by_memory),
}


def said(encoder: Encoder, field: str) -> Iterator[str]:
    for n in (*range(2500), 2**31, 2**53, 2**63):
        try:
            surface = encoder(n)
        except (Refused, ValidationError):
            continue  # it can't be said at all
        yield json.dumps(json.loads(encode(surface))[field], sort_keys=True)


def test_every_field_has_its_encoders() -> None:
    assert ENCODERS.keys() == Surface.model_fields.keys()


@pytest.mark.parametrize(("field", "encoder"), [(f, e) for f, all_ in ENCODERS.items() for e in all_])
def test_no_field_says_more_than_its_price(field: str, encoder: Encoder) -> None:
    outcomes = set(said(encoder, field))
    # What is told of an end is one verdict, whichever of the three fields it is read from.
    price = price_bits(CONTEXT)["code" if field in {"outcome", "exit_class"} else field]
    assert math.log2(max(1, len(outcomes))) <= price + 1e-9, outcomes


def test_the_encoders_do_encode() -> None:
    told = {f: max((len(set(said(e, f))) for e in all_), default=0) for f, all_ in ENCODERS.items()}
    assert {"code", "metrics", "self_reported", "records_bucket", "patients_bucket", "usage"} <= {
        field for field, n in told.items() if n > 1
    }
