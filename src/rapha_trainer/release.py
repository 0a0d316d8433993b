"""What a job leaves: weights, self-reported metrics, predictions, in the form that the release plan fixes.

The plan is /rapha/in/plan.json and files go to /rapha/out; `RAPHA_IN` and `RAPHA_OUT` name other folders at
home. What is written here is checked and rebuilt by the node; these checks only say so early.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha_trainer import tensors

PREDICTIONS = "predictions.f32"
_started: set[Path] = set()


def weights(values: Mapping[str, Any]) -> Path:
    """Write the planned weights file from numpy arrays or torch tensors.

    Args:
        values: every planned tensor by name, in its planned shape; cast to its planned dtype.

    Returns:
        The file.

    Raises:
        ValueError: a tensor is missing, not planned, of another shape, or can't be cast.
        RuntimeError: the plan releases no weights, or can't be read.
    """
    plan = _plan("weights")
    planned = {tensor["name"]: tensor for tensor in plan["tensors"]}
    if missing := [name for name in planned if name not in values]:
        raise ValueError(f"missing tensors: {', '.join(missing)}")
    if extra := sorted(set(values) - set(planned)):
        raise ValueError(f"not in the release plan: {', '.join(extra)}")
    arrays = {
        name: tensors.cast(name, as_numpy(values[name]), tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in planned.items()
    }
    path = _out() / str(plan["file"])
    tensors.write(path, arrays, {name: tensor["dtype"] for name, tensor in planned.items()})
    return path


def metric(name: str, value: Any) -> Path:
    """Report a planned number, boolean or option about the job; a later value replaces an earlier one.

    It leaves marked as self-reported. The file is complete after each call.

    Raises:
        ValueError: the name is not planned, or the value is not of the planned type.
        RuntimeError: the plan has no self-reported fields, or can't be read.
    """
    plan = _plan("self_reported")
    fields = {field["name"]: field for field in plan["fields"]}
    if name not in fields:
        raise ValueError(f"{name!r} is not in the release plan; it has {', '.join(fields)}")
    path = _out() / str(plan["file"])
    reported = json.loads(path.read_text()) if path.exists() else {}
    reported[name] = _reported(name, value, fields[name])
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(reported, separators=(",", ":"), allow_nan=False))
    partial.replace(path)
    return path


def predictions(values: Any) -> Path:
    """Append predictions for the next records of the test split, in their order.

    Args:
        values: [batch, …], numbers; written as float32 in C order.

    Raises:
        ValueError: the values are not finite numbers.
    """
    array = as_numpy(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"predictions must be real numbers, not {array.dtype}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype="<f4")
    if not np.isfinite(array).all():
        raise ValueError("predictions must be finite in float32")
    path = _out() / PREDICTIONS
    # A first call in a process starts over, so that running a script twice at home doesn't append.
    with path.open("ab" if path in _started else "wb") as file:
        file.write(array.tobytes())
    _started.add(path)
    return path


def as_numpy(value: Any) -> NDArray[Any]:
    """A numpy array of a numpy array, torch tensor, or nested list of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def _reported(name: str, value: Any, field: Mapping[str, Any]) -> bool | int | float | str:
    kind = field["type"]
    if kind == "enum":
        if value not in field["options"]:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(field['options'])}")
        return str(value)
    array = as_numpy(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected one finite number, not {value!r}")
    number = array.reshape(()).item()
    if kind == "boolean":
        if not isinstance(number, bool):
            raise ValueError(f"{name}: expected true or false, not {value!r}")
        return number
    if isinstance(number, bool) or (kind == "integer" and number != int(number)):
        raise ValueError(f"{name}: expected {'a whole' if kind == 'integer' else 'a'} number, not {value!r}")
    return int(number) if kind == "integer" else float(number)


def _plan(part: str) -> dict[str, Any]:
    path = Path(os.environ.get("RAPHA_IN", "/rapha/in")) / "plan.json"
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"the release plan {path} can't be read ({error}); at home, set RAPHA_IN"
        ) from None
    if not plan.get(part):
        raise RuntimeError(f"the release plan has no {part!r}")
    return dict(plan[part])


def _out() -> Path:
    return Path(os.environ.get("RAPHA_OUT", "/rapha/out"))
