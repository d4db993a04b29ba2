"""One step of training and scoring, the same for the base and for increments, on one worker or several.

An own step, because `fit` fails under MultiWorkerMirroredStrategy with Keras 3. Batches have one size: a short one is
filled up with rows of weight zero, so that all workers step together and nothing is traced twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.definition import ModelDefinition
from training.model import Recommender, build_model, raw_specs
from training.optimizers import Part, build_parts

__all__ = ["Learner", "StepResult", "pad"]

Column = npt.NDArray[Any]
State = dict[str, npt.NDArray[Any]]

_MODEL = "model"  # the group of its own variables in a state


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step saw. `probability`: (n,) before the step. `finite`: the gradient was; if not, no step was made."""

    probability: npt.NDArray[np.float64]
    finite: bool


def pad(column: Column, rows: int) -> Column:
    """Fill up to `rows` with zeros, or with "" where the column is text."""
    short = rows - len(column)
    if short == 0:
        return column
    filler = np.full((short, *column.shape[1:]), "" if column.dtype.kind in "OU" else 0, dtype=column.dtype)
    return np.concatenate([column, filler])


class Learner:
    """A model with its optimizers, under a distribution strategy (none: this process alone).

    `share`: rows of each batch that this worker takes, batch_rows / workers.
    """

    def __init__(
        self, definition: ModelDefinition, *, base_rate: float, strategy: tf.distribute.Strategy | None = None
    ) -> None:
        self.definition = definition
        self.base_rate = base_rate
        self._strategy = strategy or tf.distribute.get_strategy()
        self.share = definition.batch_rows // self._strategy.num_replicas_in_sync
        with self._strategy.scope():
            self.model = build_model(definition, base_rate=base_rate)
            self._parts = build_parts(definition, self.model)
        self._step = self._traced_step()
        self._score = self._traced_score()

    def train(
        self, columns: Mapping[str, Column], label: Column, weight: Column, negative_rate: Column | None = None
    ) -> StepResult:
        """Score up to `share` rows, then make one step on them. All workers must call it together.

        label, weight: (n,); a row of weight 0 is scored only. negative_rate: (n,) in (0, 1], the share of negatives
        that was kept; None: all. Probabilities are the world's, the loss is that of what was kept.
        """
        log_rate = np.zeros(len(label)) if negative_rate is None else np.log(negative_rate)
        vectors = (tf.constant(self._fill(values)) for values in (label, weight, log_rate))
        probability, finite = self._step(self._tensors(columns), *vectors)
        return StepResult(probability=probability.numpy()[: len(label)].astype(np.float64), finite=bool(finite))

    def score(self, columns: Mapping[str, Column]) -> npt.NDArray[np.float64]:
        """Probabilities of a click, (n,), in batches of `share` rows."""
        rows = len(next(iter(columns.values())))
        parts = [
            self._score(
                self._tensors({name: column[start : start + self.share] for name, column in columns.items()})
            ).numpy()[: rows - start]
            for start in range(0, rows, self.share)
        ]
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)

    def state(self) -> State:
        """Every variable of model and optimizers by name, as plain arrays."""
        return {name: np.asarray(variable) for name, variable in self._variables().items()}

    def restore(self, state: Mapping[str, Column]) -> None:
        """Take the variables of `state`, except what the definition decides: learning rates, and which optimizers there
        are. Increments may have others than their base, and one that `state` does not know begins anew.

        Raises ValueError when names or shapes differ.
        """
        for group, variables in self._groups().items():
            known = {name for name in state if name.startswith(f"{group}/")}
            if not known and group != _MODEL:
                continue
            if known != set(variables):
                raise ValueError(f"the state has other variables: {sorted(set(variables) ^ known)[:4]}")
            for name, variable in variables.items():
                if not name.endswith("/learning_rate"):
                    variable.assign(state[name])

    def _variables(self) -> dict[str, keras.Variable]:
        return {name: variable for variables in self._groups().values() for name, variable in variables.items()}

    def _groups(self) -> dict[str, dict[str, keras.Variable]]:
        """The variables of the model and of each optimizer, by name within the state."""
        groups = {_MODEL: self.model.variables} | {part.name: part.optimizer.variables for part in self._parts}
        return {group: {f"{group}/{i:02d}/{v.name}": v for i, v in enumerate(vs)} for group, vs in groups.items()}

    def _fill(self, values: Column) -> npt.NDArray[np.float32]:
        return pad(np.asarray(values, dtype=np.float32), self.share)

    def _tensors(self, columns: Mapping[str, Column]) -> dict[str, tf.Tensor]:
        return {
            name: tf.constant(pad(columns[name], self.share), spec.dtype)
            for name, spec in raw_specs(self.definition).items()
        }

    def _traced_step(self) -> Any:
        update = _update(self.model, self._parts)
        vector = tf.TensorSpec((self.share,), tf.float32)

        @tf.function(input_signature=[raw_specs(self.definition, rows=self.share), vector, vector, vector])
        def step(columns: Any, label: Any, weight: Any, log_rate: Any) -> Any:
            probability, finite = self._strategy.run(update, args=(columns, label, weight, log_rate))
            # One replica a worker: its own value is the one of its rows.
            return self._strategy.experimental_local_results(probability)[0], self._strategy.experimental_local_results(
                finite
            )[0]

        return step

    def _traced_score(self) -> Any:
        @tf.function(input_signature=[raw_specs(self.definition, rows=self.share)])
        def score(columns: Any) -> Any:
            return tf.sigmoid(self.model(columns))

        return score


def _update(model: Recommender, parts: tuple[Part, ...]) -> Any:
    """The step of one replica; the optimizers sum gradients over replicas."""

    def update(columns: Any, label: Any, weight: Any, log_rate: Any) -> Any:
        with tf.GradientTape() as tape:
            logit = model(columns)
            # The log odds of what was kept of the world (training/sampling.py); the model's own stay the world's.
            loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=label, logits=logit - log_rate)
            total = tf.reduce_sum(loss * weight)
        found = tape.gradient(total, [part.variables for part in parts])
        gradients = [[tf.convert_to_tensor(gradient) for gradient in of_part] for of_part in found]
        finite = tf.math.is_finite(tf.linalg.global_norm([each for of_part in gradients for each in of_part]))
        for part, of_part in zip(parts, gradients, strict=True):
            # A gradient that is no number must not become a weight: such a step is left out, by all optimizers alike,
            # and counted by the caller.
            safe = [tf.where(finite, gradient, 0.0) for gradient in part.wanted(of_part)]
            part.optimizer.apply(safe, part.variables)
        return tf.sigmoid(logit), finite

    return update
