"""Numbers as people read them."""

from __future__ import annotations

from typing import Any


def thousands(value: float, _place: int | None = None) -> str:
    """A number as people write it.

    >>> thousands(60_000), thousands(0.5)
    ('60,000', '0.5')
    """
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"
    return text.replace("-", "−")


def minutes(value: float, _place: int | None = None) -> str:
    """Seconds as minutes and seconds.

    >>> minutes(90.0)
    '1:30'
    """
    return f"{int(value) // 60}:{int(value) % 60:02d}"


def in_ms(value: float | None) -> str:
    """Milliseconds for people.

    >>> in_ms(None), in_ms(3.14159), in_ms(1234.5)
    ('–', '3.1 ms', '1,234 ms')
    """
    if value is None:
        return "–"
    return f"{value:,.1f} ms" if value < 100.0 else f"{value:,.0f} ms"


def span(event_ms: float) -> str:
    """A span of event time for people.

    >>> span(45_000), span(600_000), span(7_200_000)
    ('45 s', '10 min', '2.0 h')
    """
    seconds = event_ms / 1_000.0
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7_200.0 else f"{seconds / 3_600.0:.1f} h"


def outcome(summary: dict[str, Any]) -> list[str]:
    """The figures of a run, for the terminal."""
    latency = summary["latency_ms"]
    lines = [
        f"{arm}: clicks {in_percent(found['ctr_before'])} before, {in_percent(found['ctr_after'])} after the drift; "
        f"loses {in_percent(found['regret_after'])} per impression against the best possible"
        for arm, found in summary.get("arms", {}).items()
    ]
    speed = f"event time at {summary['speed']:,.0f} times wall time"
    answers = f"answers in {in_ms(latency['recommend_p50'])}, 99 % within {in_ms(latency['recommend_p99'])}"
    return [*lines, f"{minutes(summary['seconds'])} minutes, {speed}; {answers}"]


def in_percent(share: float | None) -> str:
    """A share for people.

    >>> in_percent(0.1234), in_percent(None)
    ('12.3 %', '–')
    """
    return "–" if share is None else f"{100.0 * share:.1f} %"
