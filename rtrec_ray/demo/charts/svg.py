"""Figures as inline SVG whose colours and font come from the page: one drawing is right in light and in dark."""

from __future__ import annotations

import io
import re
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Each colour stands for a variable of the page's style sheet. The hues are Okabe and Ito's, told apart by eyes of every
# kind ("Color Universal Design", 2008).
PALETTE: Final = {
    "ink": "#1b1d21",
    "quiet": "#6b7079",
    "line": "#d9dce1",
    "band": "#f0f2f5",
    "blue": "#0072b2",
    "sky": "#56b4e9",
    "green": "#009e73",
    "orange": "#d98200",
    "red": "#d55e00",
    "purple": "#b0578d",
}
WIDTH_IN: Final = 9.4
_STYLE: Final = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": PALETTE["ink"],
    "axes.edgecolor": PALETTE["quiet"],
    "axes.labelcolor": PALETTE["quiet"],
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["quiet"],
    "ytick.color": PALETTE["quiet"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def house_style() -> Any:
    """The context in which a figure is made and drawn."""
    return mpl.rc_context(_STYLE)


def figure(*heights_in: float) -> tuple[Figure, list[Any]]:
    """A figure of panels one above the other that share their x axis."""
    made = Figure(
        figsize=(WIDTH_IN, sum(heights_in)), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.02, hspace=0.04)
    )
    made.patch.set_alpha(0.0)
    axes = made.subplots(len(heights_in), 1, sharex=True, squeeze=False, height_ratios=heights_in)[:, 0]
    for panel in axes:
        panel.patch.set_alpha(0.0)
    return made, list(axes)


def to_svg(made: Figure, *, title: str) -> str:
    """The figure as an <svg> element without size, ids or colours of its own. `title`: for those who do not see it."""
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*pt" height="[^"]*pt"', r"\1", text, count=1)
    text = re.sub(r"(font: [^;\"]*?px |font-family: )[^;\"]*", r"\1var(--font)", text)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name})")
    head, body = text.split(">", 1)
    return f'{head} role="img" aria-label="{title}">{body}'
