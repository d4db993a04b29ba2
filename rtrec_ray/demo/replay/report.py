"""The report: a record in, a page for people and an object for programs out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup

from rtrec_ray.demo.directory import OBJECT, PAGE, RECORD
from rtrec_ray.demo.figures import percentiles
from rtrec_ray.demo.pages import pages
from rtrec_ray.demo.record import VersionFacts
from rtrec_ray.demo.replay.charts import charts
from rtrec_ray.demo.replay.figures import Estimate, answered, progressive, summary, switches
from rtrec_ray.demo.replay.record import DemoRecord, write_record


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
    good, environment = answered(record.calls), pages()
    environment.filters["nats"] = in_nats
    return environment.get_template("replay/replay.html").render(
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


def in_nats(estimate: Estimate) -> str:
    """A difference of losses in thousandths of a nat, with its interval.

    >>> in_nats(Estimate(value=-0.0012, low=-0.002, high=0.001))
    '−1.200 [−2.000, 1.000]'
    """
    text = f"{1e3 * estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{1e3 * estimate.low:.3f}, {1e3 * estimate.high:.3f}]"
    return text.replace("-", "−")


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
