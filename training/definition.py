"""The definition of a model: its inputs and hyper-parameters, as written in model.yaml and kept with each version."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.features.vector import ModelInput

__all__ = [
    "AdamOptions",
    "Cross",
    "DcnOptions",
    "FmOptions",
    "InputColumn",
    "LogisticOptions",
    "ModelDefinition",
    "definition_from_json",
    "load_definition",
]


_SWINGS = 8.0
"""Rate × rows from which on descent on log odds leaves a weight that all rows share further off than it was: the second
derivative of the loss is at most 1/4 a row, and a step must be below 2 / curvature."""


class InputColumn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One raw column and how the model takes it in.

    `bins`: rows of the embedding table (category). `table`: the category whose table an ids column uses. `missing`: the
    category that stands for an absent one.
    """

    name: str
    kind: Literal["category", "number", "ids"]
    bins: int = 0
    length: int = 1
    table: str = ""
    missing: str = ""

    @property
    def input(self) -> ModelInput:
        """The part of it that whoever feeds the model must know."""
        return ModelInput(name=self.name, kind=self.kind, length=self.length)


class Cross(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A feature cross: categories `of` whose values count together, hashed into `bins` weights of the wide part."""

    of: tuple[str, ...]
    bins: int


class LogisticOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """FTRL-proximal (McMahan et al., KDD 2013, algorithm 1): per-coordinate rate, strengths of L1 and L2.

    It trains the logistic family and the wide part of the others. `increment_learning_rate`: in increments, the
    constant rate of plain gradient descent; 0: FTRL goes on, at rates that fall. `optimizer`: which of the two; `sgd`
    knows nothing of `beta`, `l1` and `l2`.
    """

    optimizer: Literal["ftrl", "sgd"] = "ftrl"
    learning_rate: float = 0.05
    increment_learning_rate: float = 0.0
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 1.0


class AdamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adam (Kingma and Ba, ICLR 2015): its rate, that in increments (0: the same), the most of the gradient's norm."""

    learning_rate: float = 0.001
    increment_learning_rate: float = 0.0
    clip_norm: float = 1.0


_Options = TypeVar("_Options", bound=AdamOptions)


class DcnOptions(AdamOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Deep & cross network, second version (Wang et al., WWW 2021): width of embeddings and layers, Adam's rates."""

    dim: int = 8
    cross_layers: int = 2
    hidden: tuple[int, ...] = (64, 32)


class FmOptions(AdamOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Factorisation machine (Rendle, ICDM 2010): factors of each value, Adam's rates."""

    dim: int = 8


class ModelDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model before it has seen a sample. `batch_rows`: rows of one step over all workers.

    `increment_batch_rows`: the same in increments; 0: as many. `backfilled`: a base learns from features that were
    computed afterwards where a sample lacks logged ones; increments and examinations go by what was logged.
    """

    family: Literal["logistic", "fm", "dcn"]
    inputs: tuple[InputColumn, ...]
    crosses: tuple[Cross, ...] = ()
    seed: int = 17
    logistic: LogisticOptions = LogisticOptions()
    dcn: DcnOptions = DcnOptions()
    fm: FmOptions = FmOptions()
    batch_rows: int = 1024
    increment_batch_rows: int = 0
    epochs: int = 2
    backfilled: bool = False

    def of(self, kind: str) -> tuple[InputColumn, ...]:
        """The inputs of one kind, in their order."""
        return tuple(column for column in self.inputs if column.kind == kind)

    @property
    def adam(self) -> AdamOptions:
        """How the family is trained, but for what FTRL trains."""
        return self.fm if self.family == "fm" else self.dcn

    @property
    def model_inputs(self) -> tuple[ModelInput, ...]:
        """What the model's signature takes."""
        return tuple(column.input for column in self.inputs)

    def for_increments(self) -> ModelDefinition:
        """The same model with the steps of increments.

        >>> category = InputColumn(name="city", kind="category", bins=4)
        >>> ModelDefinition(family="dcn", inputs=(category,), increment_batch_rows=128).for_increments().batch_rows
        128
        """
        linear = self.logistic
        if linear.increment_learning_rate:
            steady = linear.increment_learning_rate
            linear = msgspec.structs.replace(linear, optimizer="sgd", learning_rate=steady)
        return msgspec.structs.replace(
            self,
            batch_rows=self.increment_batch_rows or self.batch_rows,
            logistic=linear,
            dcn=_steady(self.dcn),
            fm=_steady(self.fm),
        )

    def named(self, others: str) -> str:
        """Which definitions made a version: a digest of this one, beside `others` (of features and labels)."""
        return f"model={sha256(self.to_json().encode()).hexdigest()[:12]} {others}".strip()

    def to_json(self) -> str:
        """As one line of JSON, to keep with a version."""
        return msgspec.json.encode(self).decode()


def _steady(options: _Options) -> _Options:
    return msgspec.structs.replace(options, learning_rate=options.increment_learning_rate or options.learning_rate)


def definition_from_json(text: str) -> ModelDefinition:
    """The definition kept with a version. Raises ConfigInvalid."""
    return _checked(_decode(text.encode(), source="the model's card", yaml=False), source="the model's card")


def load_definition(path: Path) -> ModelDefinition:
    """Read model.yaml. Raises ConfigInvalid, which names the file and the key."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}") from error
    return _checked(_decode(text, source=str(path), yaml=True), source=str(path))


def _decode(text: bytes, *, source: str, yaml: bool) -> ModelDefinition:
    decode = msgspec.yaml.decode if yaml else msgspec.json.decode
    try:
        return decode(text, type=ModelDefinition)
    except msgspec.MsgspecError as error:
        raise ConfigInvalid(
            f"{source}: {error}", mend="configs/model.yaml in the package shows the known keys"
        ) from error


def _checked(definition: ModelDefinition, *, source: str) -> ModelDefinition:
    names = [column.name for column in definition.inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigInvalid(f"{source}: input {repeated[0]} is given twice")
    tables = {column.name for column in definition.of("category")}
    for column in definition.inputs:
        if column.kind == "category" and column.bins < 1:
            raise ConfigInvalid(f"{source}: category {column.name} needs bins of at least 1, not {column.bins}")
        if column.kind == "ids" and column.table not in tables:
            raise ConfigInvalid(f"{source}: ids {column.name} needs a category as table, not {column.table!r}")
    if not tables:
        raise ConfigInvalid(f"{source}: a model needs at least one category")
    for cross in definition.crosses:
        _check_cross(cross, tables, source=source)
    _check_increments(definition, source=source)
    return definition


def _check_cross(cross: Cross, categories: set[str], *, source: str) -> None:
    name = f"cross [{', '.join(cross.of)}]"
    if len(cross.of) < 2:
        raise ConfigInvalid(f"{source}: {name} needs at least two categories")
    for part in cross.of:
        if part not in categories:
            raise ConfigInvalid(f"{source}: {name} needs categories, which {part!r} is not")
        if cross.of.count(part) > 1:
            raise ConfigInvalid(f"{source}: {name} has {part} twice")
    if cross.bins < 1:
        raise ConfigInvalid(f"{source}: {name} needs bins of at least 1, not {cross.bins}")


def _check_increments(definition: ModelDefinition, *, source: str) -> None:
    if definition.increment_batch_rows < 0:
        rows = definition.increment_batch_rows
        raise ConfigInvalid(f"{source}: increment_batch_rows must be at least 0, not {rows}")
    for part, options in (("dcn", definition.dcn), ("fm", definition.fm), ("logistic", definition.logistic)):
        rate = options.increment_learning_rate
        if rate < 0.0:
            raise ConfigInvalid(f"{source}: {part}.increment_learning_rate must be at least 0, not {rate}")
    if definition.logistic.optimizer != "ftrl":
        raise ConfigInvalid(f"{source}: logistic.optimizer is ftrl for a base; increment_learning_rate sets another")
    rows = definition.increment_batch_rows or definition.batch_rows
    if definition.logistic.increment_learning_rate * rows >= _SWINGS:
        most = _SWINGS / rows
        raise ConfigInvalid(
            f"{source}: logistic.increment_learning_rate must be below {most:g} with {rows} rows a step"
        )
