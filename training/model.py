"""The models: raw columns in, the log odds of a click out.

Beside its tower a model may have a wide part, a linear weight for each feature cross (wide & deep, Cheng et al., DLRS
2016): it memorises what is so of one city, page and item, where the tower generalises from all of them.

Everything between a logged feature and a probability happens in here, so the exported model takes what serving has.
Every family starts at the base rate of clicks: with 5 clicks in 1,000 impressions a model that began at one half would
spend its first samples on finding that out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.definition import InputColumn, ModelDefinition

__all__ = ["Recommender", "build_model", "raw_specs"]

Columns = Mapping[str, Any]

_HASHES = 2**40  # far above any number of bins
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio (Knuth, TAOCP volume 3, section 6.4)

_SPEC = {"category": tf.string, "number": tf.float32, "ids": tf.int64}


def raw_specs(definition: ModelDefinition, *, rows: int | None = None) -> dict[str, tf.TensorSpec]:
    """The signature of the raw columns: (rows,) text or float32, (rows, length) int64."""
    return {
        column.name: tf.TensorSpec(
            (rows, column.length) if column.kind == "ids" else (rows,), _SPEC[column.kind], name=column.name
        )
        for column in definition.inputs
    }


class Lookup:
    """Raw columns to rows of one shared embedding table.

    All categories live in one table, each in a range of its own, so a batch needs one hash and one gather however many
    fields it has: at 200 rows the calls cost more than the arithmetic.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        categories = definition.of("category")
        bins = np.array([column.bins for column in categories], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(bins)[:-1])).astype(np.int64)
        place = {column.name: index for index, column in enumerate(categories)}
        self.rows = int(bins.sum())
        self._categories = [column.name for column in categories]
        self._missing = np.array([column.missing for column in categories], dtype=object)
        self._bins, self._starts = bins, starts
        self.lists: tuple[InputColumn, ...] = definition.of("ids")
        owner = [place[column.table] for column in self.lists for _ in range(column.length)]
        self._list_bins, self._list_starts = bins[owner], starts[owner]
        self._numbers = [column.name for column in definition.of("number")]

    def hashes(self, columns: Columns) -> tf.Tensor:
        """Hashes of the categories' texts, (n, categories) int64 in [0, 2**40); `missing` stands in for absent ones."""
        texts = tf.stack([columns[name] for name in self._categories], axis=1)
        texts = tf.where(tf.equal(texts, ""), tf.constant(self._missing.tolist()), texts)
        return tf.strings.to_hash_bucket_fast(texts, _HASHES)

    def categories(self, hashes: tf.Tensor) -> tf.Tensor:
        """Table rows of the categories, (n, categories) int64."""
        return hashes % self._bins + self._starts

    def ids(self, columns: Columns) -> tuple[tf.Tensor, tf.Tensor]:
        """Table rows of all list entries, (n, entries) int64, and whether each is there, (n, entries) float32."""
        entries = tf.concat([columns[column.name] for column in self.lists], axis=1)
        # As text, as in the category whose table they share: the same item meets the same row.
        rows = tf.strings.to_hash_bucket_fast(tf.strings.as_string(entries), _HASHES) % self._list_bins
        return rows + self._list_starts, tf.cast(entries >= 0, tf.float32)

    def numbers(self, columns: Columns) -> tf.Tensor | None:
        """The numbers on a log scale, (n, numbers) float32; None when the model takes none."""
        if not self._numbers:
            return None
        values = tf.stack([columns[name] for name in self._numbers], axis=1)
        return tf.sign(values) * tf.math.log1p(tf.abs(values))


class Crossing:
    """Hashes of categories to rows of the wide table, in which each cross has a range of its own.

    The hash of a cross is the upper half of sum over j of hash_j × factor_j modulo 2**64, multilinear hashing (Lemire &
    Kaser, The Computer Journal 2014): one product for all crosses, and no text is joined and hashed a second time.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        place = {column.name: index for index, column in enumerate(definition.of("category"))}
        crosses = definition.crosses
        self._bins = np.array([cross.bins for cross in crosses], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._bins)[:-1])).astype(np.int64)
        self.rows = int(self._bins.sum())
        factors = np.zeros((len(place), len(crosses)), dtype=np.uint64)
        for index, cross in enumerate(crosses):
            for power, name in enumerate(cross.of, start=1):
                # By the place in the cross: what a stored version calls a row must not depend on its other crosses.
                factors[place[name], index] = pow(_GOLDEN, power, 2**64)
        self._factors = factors.view(np.int64)

    def __call__(self, hashes: tf.Tensor) -> tf.Tensor:
        """Table rows of the crosses: (n, categories) int64 → (n, crosses) int64."""
        mixed = tf.bitwise.right_shift(tf.matmul(hashes, self._factors), np.int64(32))
        return mixed % self._bins + self._starts


class Recommender(keras.Model):
    """Log odds of a click: `prior` (those of the base rate) plus what the tower makes of the embedded row, plus the
    weights of its crosses.
    """

    def __init__(self, definition: ModelDefinition, *, base_rate: float) -> None:
        super().__init__(name=definition.family)
        self._lookup = Lookup(definition)
        self._prior = math.log(base_rate / (1.0 - base_rate))
        tower = _tower(definition)
        # In this order, so that the variables keep the names that stored versions have.
        self.table = keras.layers.Embedding(
            self._lookup.rows, tower.width, embeddings_initializer=tower.initial, name="table"
        )
        self.tower = tower
        # Last, so that the others keep theirs with and without crosses.
        self.wide = Wide(definition) if definition.crosses else None

    @property
    def wide_variables(self) -> list[keras.Variable]:
        """The weights of the crosses; none without crosses."""
        return [] if self.wide is None else self.wide.trainable_variables

    def call(self, columns: Columns) -> tf.Tensor:
        """Raw columns to log odds, (n,) float32."""
        hashes = self._lookup.hashes(columns)
        parts = [self.table(self._lookup.categories(hashes)), *self._pooled(columns)]
        logit = self._prior + self.tower(tf.concat(parts, axis=1), self._lookup.numbers(columns))
        return logit if self.wide is None else logit + self.wide(hashes)

    def _pooled(self, columns: Columns) -> list[tf.Tensor]:
        """The mean embedding of each list, (n, 1, dim) each; zero for an empty one."""
        if not self._lookup.lists:
            return []
        rows, there = self._lookup.ids(columns)
        entries = self.table(rows) * there[:, :, None]
        lengths = [column.length for column in self._lookup.lists]
        return [
            tf.reduce_sum(part, axis=1, keepdims=True)
            / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)[:, :, None]
            for part, mask in zip(tf.split(entries, lengths, axis=1), tf.split(there, lengths, axis=1), strict=True)
        ]


class Wide(keras.layers.Layer):
    """The sum of the weights of a row's crosses: hashes of categories (n, categories) int64 → (n,)."""

    def __init__(self, definition: ModelDefinition) -> None:
        super().__init__(name="wide")
        self._crossing = Crossing(definition)
        # Zero, where FTRL has to begin.
        self.table = keras.layers.Embedding(self._crossing.rows, 1, embeddings_initializer="zeros", name="crosses")

    def call(self, hashes: tf.Tensor) -> tf.Tensor:
        """Log odds above those of the tower."""
        return tf.reduce_sum(self.table(self._crossing(hashes)), axis=(1, 2))


def _tower(definition: ModelDefinition) -> Linear | Factorised | DeepCross:
    families: dict[str, type[Linear] | type[Factorised] | type[DeepCross]] = {
        "logistic": Linear,
        "fm": Factorised,
        "dcn": DeepCross,
    }
    return families[definition.family](definition)


class Linear(keras.layers.Layer):
    """The sum of the weights of what is there: embedded (n, fields, 1), numbers (n, k) → (n,).

    `width` of the table's rows and how they begin (`initial`), here as in the other towers.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        super().__init__(name="linear")
        # FTRL computes a weight from its sums alone, so it must begin where its sums say it is: at zero.
        self.width, self.initial = 1, keras.initializers.Zeros()
        self.out = keras.layers.Dense(1, kernel_initializer="zeros", name="numbers")

    def call(self, embedded: tf.Tensor, numbers: tf.Tensor | None) -> tf.Tensor:
        """Log odds above the prior."""
        # Without numbers the bias still needs a column to sit beside.
        given = tf.zeros_like(embedded[:, :1, 0]) if numbers is None else numbers
        return tf.reduce_sum(embedded, axis=(1, 2)) + self.out(given)[:, 0]


class Factorised(keras.layers.Layer):
    """Factorisation machine (Rendle, ICDM 2010): embedded (n, fields, 1 + dim), numbers (n, k) → (n,).

    The first of each row is the weight of the value itself, the rest its factors. All pairs are summed up in linear
    time (lemma 3.1), and the sum over the dimensions is weighted, as in bi-interaction pooling (He and Chua, SIGIR
    2017, section 3.1): weights of one are Rendle's machine, and weights that begin at zero answer the base rate first.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        super().__init__(name="factorised")
        dim, numbers = definition.fm.dim, len(definition.of("number"))
        self.width, self.initial = 1 + dim, WeightAndFactors(seed=definition.seed)
        self.numbers = None
        if numbers:
            self.numbers = keras.layers.Embedding(numbers, 1 + dim, embeddings_initializer=self.initial, name="numbers")
        self.out = keras.layers.Dense(1, kernel_initializer="zeros", name="pairs")

    def call(self, embedded: tf.Tensor, numbers: tf.Tensor | None) -> tf.Tensor:
        """Log odds above the prior."""
        terms = embedded
        if self.numbers is not None and numbers is not None:
            terms = tf.concat([embedded, numbers[:, :, None] * self.numbers(tf.range(numbers.shape[1]))], axis=1)
        factors = terms[:, :, 1:]
        pairs = tf.square(tf.reduce_sum(factors, axis=1)) - tf.reduce_sum(tf.square(factors), axis=1)
        return tf.reduce_sum(terms[:, :, 0], axis=1) + self.out(0.5 * pairs)[:, 0]


class WeightAndFactors(keras.initializers.Initializer):
    """Rows whose first is zero and whose rest is small and random."""

    def __init__(self, *, seed: int) -> None:
        self._factors = keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """(rows, 1 + dim)."""
        rows, width = shape
        return tf.concat([tf.zeros((rows, 1), dtype), self._factors((rows, width - 1), dtype)], axis=1)


class DeepCross(keras.layers.Layer):
    """Cross network beside a deep one, DCN-v2 (Wang et al., WWW 2021, section 3, parallel): (n, fields, dim) → (n,)."""

    def __init__(self, definition: ModelDefinition) -> None:
        super().__init__(name="deep_cross")
        options, seed = definition.dcn, definition.seed
        fields = len(definition.of("category")) + len(definition.of("ids"))
        width = fields * options.dim + len(definition.of("number"))
        self.width, self.initial = options.dim, keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)
        # A seed each: layers of one shape and one seed would begin as copies of each other.
        self.cross = [
            keras.layers.Dense(width, kernel_initializer=_glorot(seed + 1 + index), name=f"cross_{index}")
            for index in range(options.cross_layers)
        ]
        self.deep = [
            keras.layers.Dense(
                units, activation="relu", kernel_initializer=_glorot(seed + 101 + index), name=f"deep_{index}"
            )
            for index, units in enumerate(options.hidden)
        ]
        # Zero, so that the first answer is the base rate for everybody.
        self.out = keras.layers.Dense(1, kernel_initializer="zeros", name="out")

    def call(self, embedded: tf.Tensor, numbers: tf.Tensor | None) -> tf.Tensor:
        """Log odds above the prior."""
        flat = tf.reshape(embedded, (-1, embedded.shape[1] * embedded.shape[2]))
        first = flat if numbers is None else tf.concat([flat, numbers], axis=1)
        crossed = deep = first
        for layer in self.cross:
            crossed = first * layer(crossed) + crossed
        for layer in self.deep:
            deep = layer(deep)
        return self.out(tf.concat([crossed, deep], axis=1))[:, 0]


def _glorot(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.GlorotUniform(seed=seed)


def build_model(definition: ModelDefinition, *, base_rate: float) -> Recommender:
    """A model with its variables made. `base_rate`: share of clicks, in (0, 1)."""
    model = Recommender(definition, base_rate=base_rate)
    model({name: tf.zeros([1, *spec.shape[1:]], spec.dtype) for name, spec in raw_specs(definition).items()})
    return model
