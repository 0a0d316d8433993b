"""A batch in the form that a loop gets it: numpy arrays and Arrow lists, or torch tensors.

A field of variable length is a `pyarrow.ListArray` (FixedSizeLists inside where its values have a shape), or
in torch a nested tensor of jagged layout. Both refer to the memory that they are made from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha_trainer.source import Arrays, Field, Ragged


def check(fields: Iterable[Field], as_torch: bool) -> None:
    """That the libraries which these fields need are there, before any record is asked for.

    Raises:
        ImportError: torch or pyarrow is missing; says what to do.
    """
    if as_torch and find_spec("torch") is None:
        raise ImportError("as_torch=True needs torch, which is not installed here")
    ragged = [field.name for field in fields if field.ragged]
    if ragged and not as_torch and find_spec("pyarrow") is None:
        raise ImportError(
            f"{ragged[0]}: a field of variable length needs pyarrow, which is not installed here; "
            "install it, use as_torch=True, or declare a `length` transform for the field in job.yaml"
        )


def silence_torch() -> None:
    """Torch warns once a process of memory that it can't mark read-only; `RaphaDataLoader` says it too."""
    array = np.zeros(1)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _tensor(array)


def records(batch: Arrays) -> int:
    """How many records a batch holds."""
    column = next(iter(batch.values()))
    return len(column.offsets) - 1 if isinstance(column, Ragged) else len(column)


def copied(batch: Arrays) -> Arrays:
    """The same values in memory of one's own."""
    return {
        name: Ragged(column.values.copy(), column.offsets.copy())
        if isinstance(column, Ragged)
        else column.copy()
        for name, column in batch.items()
    }


def as_arrow(batch: Arrays, keys: Mapping[str, str]) -> dict[str, Any]:
    """Arrays as they are, and Arrow lists, under their keys. Only booleans are copied: Arrow packs them."""
    return {
        keys[name]: _list_array(column) if isinstance(column, Ragged) else column
        for name, column in batch.items()
    }


def as_tensors(batch: Arrays, keys: Mapping[str, str]) -> dict[str, Any]:
    """Tensors that share the arrays' memory, under their keys."""
    return {
        keys[name]: _jagged(column) if isinstance(column, Ragged) else _tensor(column)
        for name, column in batch.items()
    }


def _list_array(column: Ragged) -> Any:
    import pyarrow

    values = column.values
    flat = values.reshape(-1)
    if flat.dtype == np.bool_:
        items = pyarrow.array(flat)
    else:
        kind = pyarrow.from_numpy_dtype(flat.dtype)
        items = pyarrow.Array.from_buffers(kind, len(flat), [None, pyarrow.py_buffer(flat)])
    for size in reversed(values.shape[1:]):
        items = pyarrow.FixedSizeListArray.from_arrays(items, size)
    return pyarrow.ListArray.from_arrays(pyarrow.array(column.offsets), items)


def _jagged(column: Ragged) -> Any:
    from torch.nested import nested_tensor_from_jagged

    return nested_tensor_from_jagged(_tensor(column.values), _tensor(column.offsets))


def _tensor(array: NDArray[Any]) -> Any:
    from torch import from_numpy

    return from_numpy(array)
