"""The one place where raw feature dicts become model columns, so that training and serving cannot differ.

A raw feature is what serving logged: text, a number or a list of ids under a name. A missing feature, None, a value of
another kind and a number that is not finite are all the same to a model: absent, with a value of its own ("", 0.0, -1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["category", "number", "ids"]
Columns = dict[str, npt.NDArray[Any]]

NO_CATEGORY: Final = ""
NO_NUMBER: Final = 0.0
NO_ID: Final = -1
# float32 overflows to inf beyond 3.4e38, and one inf spoils a whole batch of gradients.
_FLOAT32_MAX: Final = 3e38
_INT64: Final = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One column a model takes. `length` is the number of ids in a row of kind "ids" and 1 for the other kinds."""

    name: str
    kind: Kind
    length: int = 1


def assemble(inputs: Iterable[ModelInput], rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of `inputs` for n rows: category (n,) str; number (n,) float32; ids (n, length) int64, padded by -1.

    >>> columns = assemble(
    ...     [ModelInput(name="city", kind="category"), ModelInput(name="last", kind="ids", length=3)],
    ...     [{"city": "Delhi", "last": [7, 8]}, {}],
    ... )
    >>> columns["city"].tolist(), columns["last"].tolist()
    (['Delhi', ''], [[7, 8, -1], [-1, -1, -1]])
    """
    return {each.name: _column(each, [row.get(each.name) for row in rows]) for each in inputs}


def _column(column: ModelInput, values: Sequence[Any]) -> npt.NDArray[Any]:
    if column.kind == "category":
        return np.array([_category(value) for value in values], dtype=np.str_)
    if column.kind == "number":
        return np.array([_number(value) for value in values], dtype=np.float32)
    return _ids(values, length=column.length)


def _category(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # JSON may turn 7 into 7.0 on its way through a foreign writer; both are the category "7".
    return str(int(value)) if isinstance(value, float) and value.is_integer() else NO_CATEGORY


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        return NO_NUMBER
    # Only NaN differs from itself; math.isnan would choke on an integer beyond a float.
    if value != value or value in (math.inf, -math.inf):
        return NO_NUMBER
    return min(max(value, -_FLOAT32_MAX), _FLOAT32_MAX)


def _ids(values: Sequence[Any], *, length: int) -> npt.NDArray[np.int64]:
    out = np.full((len(values), length), NO_ID, dtype=np.int64)
    for row, value in enumerate(values):
        if isinstance(value, (list, tuple)):
            ids = [each for each in value if _is_id(each)][:length]
            out[row, : len(ids)] = ids
    return out


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _INT64.min <= value <= _INT64.max
