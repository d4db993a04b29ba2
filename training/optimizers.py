"""Which optimizer moves which variables of a model, and what gradient each wants.

The wide part is FTRL's in every family, as in wide & deep (Cheng et al., DLRS 2016, section 3.2): each weight has a
rate of its own, so a cross that was seldom met learns in big steps. One that was often met learns in small ones, and is
slow to follow a drift: increments may therefore move it by plain gradient descent, whose rate does not fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from training.definition import LogisticOptions, ModelDefinition
from training.model import Recommender

__all__ = ["Part", "build_parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An optimizer with its variables. `name`: of its own variables in a state.

    `scale`: what it wants of the gradient of the loss summed over rows; `clip_norm`: the most that the norm of it may
    be after that, None: anything.
    """

    name: str
    optimizer: keras.optimizers.Optimizer
    variables: list[keras.Variable]
    scale: float
    clip_norm: float | None

    def wanted(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients of the summed loss as this optimizer wants them."""
        scaled = [gradient * self.scale for gradient in gradients]
        if self.clip_norm is None:
            return scaled
        factor = tf.minimum(1.0, self.clip_norm / tf.maximum(tf.linalg.global_norm(scaled), 1e-12))
        return [gradient * factor for gradient in scaled]


def build_parts(definition: ModelDefinition, model: Recommender) -> tuple[Part, ...]:
    """The optimizers of the family, with their variables made; each variable of the model is in one of them."""
    if definition.family == "logistic":
        return (_linear_part("optimizer", definition.logistic, model.trainable_variables),)
    wide = model.wide_variables
    apart = {id(variable) for variable in wide}
    rest = [variable for variable in model.trainable_variables if id(variable) not in apart]
    adam = _adam_part("optimizer", definition, rest)
    return (adam, _linear_part("wide_optimizer", definition.logistic, wide)) if wide else (adam,)


def _linear_part(name: str, options: LogisticOptions, variables: list[keras.Variable]) -> Part:
    if options.optimizer == "ftrl":
        optimizer = _ftrl(options)
    else:  # under a name of its own: what FTRL knows is nothing to it
        name, optimizer = name.replace("optimizer", "descent"), keras.optimizers.SGD(options.learning_rate)
    optimizer.build(variables)
    return Part(name=name, optimizer=optimizer, variables=variables, scale=1.0, clip_norm=None)  # both add up examples


def _ftrl(options: LogisticOptions) -> keras.optimizers.Optimizer:
    return keras.optimizers.Ftrl(
        learning_rate=options.learning_rate,
        initial_accumulator_value=0.0,
        beta=options.beta,
        l1_regularization_strength=options.l1,
        l2_regularization_strength=options.l2 / 2.0,  # Keras adds 2 × l2 where the paper adds it once
    )


def _adam_part(name: str, definition: ModelDefinition, variables: list[keras.Variable]) -> Part:
    options = definition.adam
    optimizer = keras.optimizers.Adam(learning_rate=options.learning_rate)
    optimizer.build(variables)
    # A mean over the full batch size, so that a short batch makes a small gradient.
    scale = 1.0 / definition.batch_rows
    return Part(name=name, optimizer=optimizer, variables=variables, scale=scale, clip_norm=options.clip_norm)
