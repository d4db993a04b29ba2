"""Feature views as the text of a features.yaml: `parse_definitions` gives the same views back."""

from __future__ import annotations

from typing import Any

from rtrec_ray import yaml_text
from rtrec_ray.definition_file import duration_text
from rtrec_ray.features.definition import ALL, Aggregation, Condition, Definitions, FeatureView


def to_texts(definitions: Definitions) -> list[str]:
    """The files that have all versions of all views when they are applied one after another, the newest last.

    >>> print(to_texts(Definitions(tile_ms=10_000, horizon_ms=600_000, retention_ms=600_000))[-1].strip())
    tile: 10s
    horizon: 10m
    retention: 10m
    views: []
    """
    times = {"tile": definitions.tile_ms, "horizon": definitions.horizon_ms, "retention": definitions.retention_ms}
    top = {name: duration_text(ms) for name, ms in times.items()}
    ages = max((len(versions) for versions in definitions.by_name.values()), default=1)
    trees = [
        {**top, "views": [_view(versions[age]) for versions in definitions.by_name.values() if age < len(versions)]}
        for age in reversed(range(ages))
    ]
    return [yaml_text.dump(tree, default_flow_style=None, width=200) for tree in trees]


def _view(view: FeatureView) -> dict[str, Any]:
    return {
        "name": view.name,
        "version": view.version,
        "keys": ["|".join(form) or ALL for form in view.keys],
        "window": duration_text(view.window_ms),
        "source": _conditions(view.source),
        "cached": view.cached,
        "aggregations": {each.name: _aggregation(each) for each in view.aggregations},
    }


def _aggregation(of: Aggregation) -> dict[str, Any]:
    found: dict[str, Any] = {of.kind: "events" if of.field is None else of.field}
    if of.where:
        found["where"] = _conditions(of.where)
    if of.limit is not None:
        found["limit"] = of.limit
    if of.repeats:
        found["repeats"] = True
    return found


def _conditions(conditions: tuple[Condition, ...]) -> dict[str, Any]:
    return {each.field: list(each.values) or "present" for each in conditions}
