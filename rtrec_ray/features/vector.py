"""Raw features of a request to the columns of a model: the one place where it happens.

Training reads logged features and serving reads fresh ones; both come through here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MISSING_ID", "ModelInput", "assemble"]

InputKind = Literal["category", "number", "ids"]

MISSING_ID = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One raw column that a model takes.

    category: text, "" where missing. number: float32, 0 where missing. ids: int64 of `length`, newest first, -1 where
    missing.
    """

    name: str
    kind: InputKind
    length: int = 1


def assemble(inputs: Sequence[ModelInput], rows: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """The columns of `rows` by input name: category (n,) of str, number (n,) float32, ids (n, length) int64.

    A value that does not fit its kind counts as missing: a log must not stop training, nor a request fail.

    >>> columns = assemble([ModelInput(name="city", kind="category"), ModelInput(name="last", kind="ids", length=2)],
    ...                    [{"city": "Beijing", "last": [7]}, {}])
    >>> columns["city"].tolist(), columns["last"].tolist()
    (['Beijing', ''], [[7, -1], [-1, -1]])
    """
    return {wanted.name: _COLUMN[wanted.kind](wanted, [row.get(wanted.name) for row in rows]) for wanted in inputs}


def _category(_: ModelInput, values: list[Any]) -> npt.NDArray[Any]:
    # An integral float and the integer are the same category: JSON writers differ in this.
    texts = [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) if value is not None else ""
        for value in values
    ]
    return np.array(texts, dtype=object)


def _number(_: ModelInput, values: list[Any]) -> npt.NDArray[Any]:
    numbers = [float(value) if isinstance(value, int | float) else 0.0 for value in values]
    column = np.array(numbers, dtype=np.float32)
    return np.nan_to_num(column, nan=0.0, posinf=0.0, neginf=0.0)


def _ids(wanted: ModelInput, values: list[Any]) -> npt.NDArray[Any]:
    column = np.full((len(values), wanted.length), MISSING_ID, dtype=np.int64)
    for row, value in enumerate(values):
        if isinstance(value, list | tuple):
            ids = [entry for entry in value[: wanted.length] if isinstance(entry, int) and entry >= 0]
            column[row, : len(ids)] = ids
    return column


_COLUMN: dict[InputKind, Callable[[ModelInput, list[Any]], npt.NDArray[Any]]] = {
    "category": _category,
    "number": _number,
    "ids": _ids,
}
