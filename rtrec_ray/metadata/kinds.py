"""Kinds of entities and their schemas: those of the system, and how any is checked."""

from __future__ import annotations

from typing import Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from rtrec_ray.errors import MetadataConflict, MetadataInvalid, MetadataUnknown
from rtrec_ray.metadata.base import Entity, EntityKind

_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}

SYSTEM_KINDS: Final = (
    EntityKind(name="projects", schema={"type": "object", "properties": {"description": _TEXT}}, version=1),
    EntityKind(
        name="workflows",
        schema={
            "type": "object",
            "properties": {"project": _TEXT, "snapshot": _TEXT, "description": _TEXT},
            "required": ["project", "snapshot"],
        },
        version=1,
    ),
    EntityKind(
        name="jobs",
        schema={
            "type": "object",
            "properties": {
                "workflow": _TEXT,
                "kind": {"enum": ["batch", "endless"]},
                "inputs": _TEXTS,
                "outputs": _TEXTS,
                "description": _TEXT,
            },
            "required": ["workflow", "kind"],
        },
        version=1,
    ),
)
_RESERVED: Final = {kind.name for kind in SYSTEM_KINDS} | {"datasets", "snapshots", "runs", "models", "kinds"}


def check_kind(kind: EntityKind) -> None:
    """Raise MetadataInvalid for a name of the system's own or a schema that is none.

    >>> check_kind(EntityKind(name="shops", schema={"required": "name"}))
    Traceback (most recent call last):
    rtrec_ray.errors.MetadataInvalid: the schema of 'shops' is no JSON Schema: 'name' is not of type 'array'
    """
    if kind.name in _RESERVED or not kind.name:
        raise MetadataInvalid(f"{kind.name!r} is a kind of the system's own", mend="take another name")
    try:
        Draft202012Validator.check_schema(dict(kind.schema))
    except SchemaError as error:
        raise MetadataInvalid(f"the schema of {kind.name!r} is no JSON Schema: {error.message}") from error


def check_entity(entity: Entity, kind: EntityKind | None) -> None:
    """Raise MetadataUnknown without a kind, MetadataInvalid for a body that its schema refuses.

    >>> check_entity(Entity(kind="jobs", name="j", body={"workflow": "w", "kind": "slow"}), SYSTEM_KINDS[2])
    Traceback (most recent call last):
    rtrec_ray.errors.MetadataInvalid: jobs 'j': kind: 'slow' is not one of ['batch', 'endless']
    """
    if kind is None:
        raise MetadataUnknown(f"there is no metadata of kind {entity.kind!r}", mend="put_kind defines one")
    # An empty registry: a schema may refer within itself, but makes nobody fetch an address.
    validator = Draft202012Validator(dict(kind.schema), registry=Registry())
    try:
        found = next(iter(sorted(validator.iter_errors(dict(entity.body)), key=lambda error: error.json_path)), None)
    except Unresolvable as error:
        raise MetadataInvalid(f"the schema of {entity.kind!r} refers to what is not in it: {error}") from error
    if found is not None:
        place = ".".join(map(str, found.absolute_path)) or "the body"
        raise MetadataInvalid(f"{entity.kind} {entity.name!r}: {place}: {found.message}")


def conflict(name: str, expected: int | None, known: int) -> MetadataConflict:
    """The error of a change that was made to another version."""
    return MetadataConflict(
        f"{name!r} is at version {known}, not {expected}", mend="read it again, and make the change to that"
    )
