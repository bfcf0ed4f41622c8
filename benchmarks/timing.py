"""Measuring side by side: rounds that alternate, ratios within a round, medians with their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, the lowest and the highest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    @property
    def seconds(self) -> str:
        """For times in seconds: ``12.3 (11.9 to 14)``."""
        return self._show(1)

    @property
    def milliseconds(self) -> str:
        """The same in milliseconds, also for times in seconds."""
        return self._show(1e3)

    @property
    def ratio(self) -> str:
        """For ratios: ``1.02x (0.99 to 1.05)``."""
        return f"{self.middle:.3g}x ({self.low:.3g} to {self.high:.3g})"

    def _show(self, factor: float) -> str:
        middle, low, high = (_short(factor * value) for value in (self.middle, self.low, self.high))
        return f"{middle} ({low} to {high})"


def interleave(
    arms: Mapping[str, Callable[[int], float]], rounds: int, *, start: int = 0, warm_up: bool = False
) -> dict[str, list[float]]:
    """Run every arm once a round, so that what slows the machine slows all of them alike.

    Args:
        arms: by name, a function that takes the round's number and returns the seconds that it took.
        rounds: how many; in each, another arm begins.
        start: the first round's number.
        warm_up: run every arm once before, unmeasured, as round -1.

    Returns:
        by name, the seconds of each round.
    """
    names = list(arms)
    for name in names if warm_up else ():
        arms[name](-1)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(start, start + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(arms[name](number))
    return times


def ratio(times: Mapping[str, Sequence[float]], ours: str, other: str) -> Spread:
    """The spread of ``ours`` to ``other``, each pair from one round."""
    return Spread.of([a / b for a, b in zip(times[ours], times[other], strict=True)])


def added(times: Mapping[str, Sequence[float]], ours: str, other: str) -> Spread:
    """The spread of ``ours`` minus ``other``, each pair from one round."""
    return Spread.of([a - b for a, b in zip(times[ours], times[other], strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
