"""Scoring: all candidates of a request in one batch.

The features of the request are the same for each candidate: they become columns once and are repeated, so the cost of a
batch is that of its items' own features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rtrec_ray.errors import ModelRejected
from rtrec_ray.features.vector import Columns, ModelInput, assemble

Features = Mapping[str, Any]


class Scorer(Protocol):
    """A model version in memory."""

    @property
    def version(self) -> str:
        """The registry's number of it."""
        ...

    @property
    def inputs(self) -> Sequence[ModelInput]:
        """The columns it takes."""
        ...

    @property
    def trained_to_ms(self) -> int | None:
        """Event time of its newest sample, ms UTC."""
        ...

    def predict(self, columns: Columns, /) -> npt.NDArray[np.float64]:
        """Click probabilities, (n,) for columns of n rows. Raises what its library raises."""
        ...


def columns_of(inputs: Sequence[ModelInput], *, shared: Features, rows: Sequence[Features]) -> Columns:
    """The columns of n rows `{**shared, **row}`.

    >>> inputs = [ModelInput(name="city", kind="category"), ModelInput(name="views", kind="number")]
    >>> columns = columns_of(inputs, shared={"city": "Pune"}, rows=[{"views": 1}, {"views": 2}])
    >>> columns["city"].tolist(), columns["views"].tolist()
    (['Pune', 'Pune'], [1.0, 2.0])
    """
    of_items = set().union(*rows)
    own = assemble([column for column in inputs if column.name in of_items], _merged(shared, rows, of_items))
    common = assemble([column for column in inputs if column.name not in of_items], [shared])
    return {name: np.repeat(values, len(rows), axis=0) for name, values in common.items()} | own


def _merged(shared: Features, rows: Sequence[Features], of_items: set[str]) -> Sequence[Features]:
    # A name that is the request's and only some items' own: the others take the request's.
    both = {name: shared[name] for name in of_items & shared.keys()}
    return [{**both, **row} for row in rows] if both else rows


def score(model: Scorer, *, shared: Features, rows: Sequence[Features]) -> npt.NDArray[np.float64]:
    """The model's click probability of each row, (n,). Raises ModelRejected when it is not n finite numbers."""
    answer = np.asarray(model.predict(columns_of(model.inputs, shared=shared, rows=rows)), dtype=np.float64)
    if answer.shape != (len(rows),):
        raise ModelRejected(f"model {model.version} answered shape {answer.shape} to {len(rows)} rows")
    if not np.isfinite(answer).all():
        broken = np.count_nonzero(~np.isfinite(answer))
        raise ModelRejected(f"model {model.version} answered {broken} of {len(rows)} scores that are not finite")
    return answer


def best_first(scores: npt.NDArray[np.float64]) -> list[int]:
    """Indexes by falling score; equal scores keep the order of recall.

    >>> best_first(np.array([0.1, 0.9, 0.1]))
    [1, 0, 2]
    """
    return [int(index) for index in np.argsort(-scores, kind="stable")]


def by_place(count: int) -> npt.NDArray[np.float64]:
    """Scores for items that no model has scored: 1, 1/2, 1/3, ... in their order.

    >>> by_place(2).tolist()
    [1.0, 0.5]
    """
    return 1.0 / np.arange(1, count + 1, dtype=np.float64)
