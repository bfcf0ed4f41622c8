"""Bar charts of ratios, as SVG files that are checked in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.timing import Spread


def bars(path: Path, title: str, groups: Mapping[str, Mapping[str, Spread]]) -> None:
    """Draw one row of horizontal bars for each group; a bar's whisker goes from the lowest to the highest."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "latent-encoder", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    counts = [len(group) for group in groups.values()]
    figure, rows = pyplot.subplots(
        len(groups), 1, figsize=(8, 0.6 * len(groups) + 0.28 * sum(counts)), height_ratios=counts, squeeze=False
    )
    for axes, (name, group) in zip(rows[:, 0], groups.items(), strict=True):
        spreads = list(group.values())
        errors = [[s.middle - s.low for s in spreads], [s.high - s.middle for s in spreads]]
        drawn = axes.barh(list(group), [s.middle for s in spreads], xerr=errors, color="#4c78a8", ecolor="#999999")
        axes.bar_label(drawn, [f"{s.middle:.2f}" for s in spreads], padding=6)
        axes.set_title(name, loc="left", fontsize=9)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
