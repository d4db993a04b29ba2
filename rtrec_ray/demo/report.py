"""The report: a record in, a page for people and an object for programs out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from rtrec_ray.demo.charts import charts
from rtrec_ray.demo.figures import Estimate, answered, percentiles, progressive, summary, switches
from rtrec_ray.demo.options import OBJECT, PAGE, RECORD
from rtrec_ray.demo.record import DemoRecord, VersionFacts, write_record
from rtrec_ray.demo.words import in_ms, in_nats, in_percent, minutes, span, thousands


def write_report(record: DemoRecord, directory: Path) -> Path:
    """Write report.html, report.json and the record they were made from; answers the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / OBJECT).write_bytes(orjson.dumps(summary(record), option=orjson.OPT_INDENT_2))
    write_record(directory / RECORD, record)
    page = directory / PAGE
    page.write_text(to_html(record), encoding="utf-8")
    return page


def to_html(record: DemoRecord) -> str:
    """The page, self-contained: no script, no address of anything else."""
    good = answered(record.calls)
    return (
        pages()
        .get_template("page.html")
        .render(
            r=record,
            report=summary(record),
            charts={name: Markup(svg) for name, svg in charts(record).items()},
            when=datetime.fromtimestamp(record.began_ms / 1_000.0, tz=UTC),
            first=datetime.fromtimestamp(record.log.first_ms / 1_000.0, tz=UTC),
            last=datetime.fromtimestamp(record.log.last_ms / 1_000.0, tz=UTC),
            failed=[check for check in record.checks if not check.ok],
            online=_online(record.versions),
            rejected=[version for version in record.versions if version.outcome == "rejected"],
            reloads=len(switches(record.calls)),
            learning=_learning(record),
            losses=progressive(record),
            answers=len(good),
            whole=sum(not call.degraded for call in good),
            lacking=Counter(reason for call in good for reason in call.degraded).most_common(),
            latency=percentiles([call.latency_ms for call in good], 50.0, 99.0),
        )
    )


def _online(versions: Iterable[VersionFacts]) -> list[VersionFacts]:
    return [version for version in versions if version.online_s is not None]


def _learning(record: DemoRecord) -> list[dict[str, Any]]:
    """What may be said of the losses, one line for each comparison."""
    losses = progressive(record)
    if losses is None:
        return []
    compared = (
        ("the model that learns on", "its base", losses.difference(losses.current, losses.base)),
        ("the model that learns on", "the constant rate", losses.difference(losses.current, losses.constant)),
        ("the base model", "the constant rate", losses.difference(losses.base, losses.constant)),
    )
    return [
        {"who": who, "whom": whom, "estimate": estimate, "verdict": _verdict(estimate)}
        for who, whom, estimate in compared
    ]


def _verdict(estimate: Estimate) -> str:
    if not estimate.settled:
        return "no difference that these few clicks could show"
    return "better" if estimate.value < 0.0 else "worse"


def pages() -> jinja2.Environment:
    """Where the pages are, with what they need to write numbers."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.PackageLoader("rtrec_ray.demo", ""),
    )
    environment.filters.update(
        thousands=thousands, minutes=minutes, ms=in_ms, nats=in_nats, span=span, percent=in_percent
    )
    return environment
