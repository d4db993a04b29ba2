"""The report: a record in, a page for people and an object for programs out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup

from rtrec_ray.demo.directory import OBJECT, PAGE, RECORD
from rtrec_ray.demo.pages import pages
from rtrec_ray.demo.words import in_percent
from rtrec_ray.demo.world.charts import NAMES, charts
from rtrec_ray.demo.world.figures import summary
from rtrec_ray.demo.world.record import WorldRecord, write_record
from rtrec_ray.simulate.world.experiment import EXPLORATION


def write_report(record: WorldRecord, directory: Path) -> Path:
    """Write report.html, report.json and the record they were made from; answers the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory / RECORD, record)  # first: what was observed in minutes must not be lost to a page
    (directory / OBJECT).write_bytes(orjson.dumps(summary(record), option=orjson.OPT_INDENT_2))
    page = directory / PAGE
    page.write_text(to_html(record), encoding="utf-8")
    return page


def to_html(record: WorldRecord) -> str:
    """The page, self-contained: no script, no address of anything else."""
    found = summary(record)
    return (
        pages()
        .get_template("world/world.html")
        .render(
            r=record,
            s=found,
            names=NAMES,
            charts={name: Markup(svg) for name, svg in charts(record).items()},
            findings=findings(found),
            when=datetime.fromtimestamp(record.began_ms / 1_000.0, tz=UTC),
            failed=[check for check in record.checks if not check.ok],
            warm_up=(record.counted_from_ms - record.live_ms[0]) / (1_000.0 * record.time.speed),
            exploration=EXPLORATION,
        )
    )


def findings(found: dict[str, Any]) -> list[dict[str, str]]:
    """What this run says of the three claims, in words and figures."""
    arms = found["arms"]
    if not found["drifts"]:
        return [_difference("Nothing drifted.", arms["features"], arms["training"])]
    static = arms["static"]
    lost = (
        f"The static system's click rate went from {in_percent(static['ctr_before'])} to "
        f"{in_percent(static['ctr_after'])}; it lost {_lost(static)} of all "
        f"impressions as clicks, against a best possible rate of "
        f"{in_percent(found['best_possible']['ctr_after'])}."
    )
    return [
        {"claim": "A static system loses clicks.", "text": lost},
        _won("Real-time features win back", "static", static, arms["features"]),
        _won("Real-time training wins back", "features", arms["features"], arms["training"]),
        {
            "claim": "Together:",
            "text": f"with both, {in_percent(found['training_over_static'])} of what static lost is still lost.",
        },
    ]


def _won(claim: str, name: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    share = 1.0 - after["regret_after"] / before["regret_after"]
    apart = after["regret_ci"][1] < before["regret_ci"][0]
    says = "the intervals do not touch" if apart else "the intervals overlap, so this run alone does not show it"
    text = f"{in_percent(share)} of what {NAMES[name]} lost: {_lost(after)} is lost instead of {_lost(before)}; {says}."
    return {"claim": claim, "text": text}


def _difference(claim: str, one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    overlap = one["regret_ci"][0] <= other["regret_ci"][1] and other["regret_ci"][0] <= one["regret_ci"][1]
    says = "no difference that this run could show" if overlap else "a difference where none was expected"
    text = f"Features alone lost {_lost(one)}, with training {_lost(other)}: {says}."
    return {"claim": claim, "text": text}


def _lost(arm: dict[str, Any]) -> str:
    low, high = arm["regret_ci"]
    return f"{in_percent(arm['regret_after'])} [{in_percent(low)} to {in_percent(high)}]"
