"""What every benchmark shares: a row beside its peer or floor, CPU clocks, interleaved repetitions, the table.

A machine that others use too is noisy: work is measured in CPU time where it can be, in rounds that take turns with
what it is compared with, and the medians are compared. A benchmark is a script that yields rows: `harness.main(rows)`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

Work = TypeVar("Work")

HEADER = ("What", "Measured", "Peer or floor in the same run", "Ratio", "Bar", "Met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Less is better, in all of them."""

    what: str
    measured: float
    unit: str
    peer: str = ""
    """What it is compared with; measured in the same unit and the same run."""
    beside: float | None = None
    """What that took."""
    at_most: float | None = None
    """The bar on `measured`."""
    ratio_at_most: float | None = None
    """The bar on `ratio`."""

    @property
    def ratio(self) -> float | None:
        """Ours of theirs."""
        return self.measured / self.beside if self.beside else None

    @property
    def met(self) -> bool | None:
        """Whether every bar is met; None where there is none."""
        bars = [(self.measured, self.at_most), (self.ratio, self.ratio_at_most)]
        judged = [value is not None and value <= bar for value, bar in bars if bar is not None]
        return all(judged) if judged else None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        bars = []
        if self.at_most is not None:
            bars.append(f"≤ {number(self.at_most)} {self.unit}")
        if self.ratio_at_most is not None:
            bars.append(f"≤ {number(self.ratio_at_most)} ×")
        return (
            self.what,
            f"{number(self.measured)} {self.unit}",
            "" if self.beside is None else f"{self.peer}: {number(self.beside)} {self.unit}",
            "" if self.ratio is None else f"{number(self.ratio)} ×",
            ", ".join(bars),
            {True: "yes", False: "**no**", None: ""}[self.met],
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    quick: bool = False
    """A smoke test: everything once and small. The numbers say nothing."""
    mlflow: str | None = None
    """A Python that has MLflow installed, for its receiver beside ours."""

    def of(self, full: int, quick: int) -> int:
        """How many."""
        return quick if self.quick else full


def number(value: float) -> str:
    """Three digits that say something."""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            text = f"{value:,.{digits}f}"
            return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def note(text: str) -> None:
    """Say what is going on, beside the table."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection of somebody else's garbage in the middle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu(work: Callable[[], object], *, of_thread: bool = False) -> float:
    """CPU seconds of the whole process, every thread of it; or of the calling thread alone."""
    clock = time.thread_time if of_thread else time.process_time
    with undisturbed():
        began = clock()
        work()
        return clock() - began


def interleaved(
    work: Mapping[str, Work],
    rounds: int,
    measure: Callable[[Work], float] = cpu,  # type: ignore[assignment]
) -> dict[str, float]:
    """The median of `rounds` measurements of each, taking turns, after one that warms up."""
    took: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, doing in work.items():
            taken = measure(doing)
            if turn:
                took[name].append(taken)
    return {name: statistics.median(values) for name, values in took.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that `run.py` and every benchmark take."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="everything once and small; the numbers say nothing")
    made.add_argument("--mlflow", metavar="PYTHON", help="a Python with MLflow, to measure its receiver beside ours")
    made.add_argument("--json", action="store_true", help="a JSON object for each row instead of the table")
    return made


def show(rows: Iterable[Row], as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        for row in rows:
            print(json.dumps(asdict(row), ensure_ascii=False), flush=True)
    else:
        print(table(rows))


def main(measure: Callable[[Options], Iterable[Row]]) -> None:
    """Run a benchmark as a script."""
    given = parser(sys.modules["__main__"].__doc__).parse_args()
    show(measure(Options(given.quick, given.mlflow)), given.json)
