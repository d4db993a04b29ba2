"""The pages of the reports."""

from __future__ import annotations

import jinja2

from rtrec_ray.demo.words import in_ms, in_percent, minutes, span, thousands


def pages() -> jinja2.Environment:
    """Where the pages are, with what they need to write numbers."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.PackageLoader("rtrec_ray.demo", ""),
    )
    environment.filters.update(thousands=thousands, minutes=minutes, ms=in_ms, span=span, percent=in_percent)
    return environment
