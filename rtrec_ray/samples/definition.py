"""What a sample is: how long an impression waits for its click, and how late a click may still correct it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from rtrec_ray.errors import DefinitionInvalid

Emit = Literal["on_click", "on_close"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDefinition:
    """The rules of labelling. Times in ms of event time.

    `wait_ms`: an impression without a click becomes a negative sample when the watermark has passed it by this much.
    `horizon_ms`: a click counts for its impression within [impression, impression + horizon), however late it comes.
    `emit`: a positive is written as soon as its click is joined (`on_click`), or like a negative at the end of the wait
    (`on_close`), so that a rise in traffic does not show as a rise in clicks.
    `cached_requests`: records of the inference log kept in memory; older ones are read back from the store.
    """

    version: int = 1
    wait_ms: int = 60_000
    horizon_ms: int = 7 * 24 * 3_600_000
    emit: Emit = "on_click"
    cached_requests: int = 100_000

    def __post_init__(self) -> None:
        """Refuse a definition that contradicts itself. Raises DefinitionInvalid."""
        if self.wait_ms < 0:
            raise DefinitionInvalid(f"wait_ms is {self.wait_ms}", mend="give the wait as 0 ms or more")
        if self.horizon_ms < self.wait_ms:
            raise DefinitionInvalid(
                f"horizon_ms {self.horizon_ms} is shorter than wait_ms {self.wait_ms}",
                mend="a click within the wait must be within the horizon",
            )
        if self.emit not in get_args(Emit):
            raise DefinitionInvalid(f"emit is {self.emit!r}", mend=f"choose one of {', '.join(get_args(Emit))}")


def load_definition(path: Path) -> SampleDefinition:
    """Read samples.yaml. Raises DefinitionInvalid, which names the file, the line and the key."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise DefinitionInvalid(f"{path}: {error}", mend="correct the file") from error
    if root is None:
        return SampleDefinition()
    if not isinstance(root, yaml.MappingNode):
        raise DefinitionInvalid(f"{path}: expected `key: value` lines", mend="see configs/samples.yaml")
    try:
        return SampleDefinition(**dict(_entry(path, key, value) for key, value in root.value))
    except DefinitionInvalid as error:
        raise DefinitionInvalid(f"{path}: {error.message.removeprefix(f'{path}: ')}", mend=error.mend) from error


def _entry(path: Path, key: yaml.Node, value: yaml.Node) -> tuple[str, Any]:
    kinds = {field.name: int if field.name != "emit" else str for field in fields(SampleDefinition)}
    where = f"{path}: line {key.start_mark.line + 1}"
    if key.value not in kinds:
        raise DefinitionInvalid(f"{where}: unknown key {key.value!r}", mend=f"known are {', '.join(kinds)}")
    found = yaml.SafeLoader("").construct_object(value, deep=True)
    if type(found) is not kinds[key.value]:
        raise DefinitionInvalid(f"{where}: {key.value} is {found!r}", mend=f"give {kinds[key.value].__name__}")
    return key.value, found
