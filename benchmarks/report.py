"""From the cells of the learning benchmark to its tables. Imports no Django, asks no model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.cells import Record
from benchmarks.comparing import (
    Interval,
    Paired,
    Score,
    accuracy,
    confusions,
    difference,
    guard_change,
    losses,
    macro_f1,
    mean_loss,
    rotate,
    weights,
)

# Points of guard accuracy that a recipe of ours may lose on the streams it is chosen on.
TOLERATED_GUARD_LOSS = 0.01
TOLERATED_LOSS = 0.02  # of macro-F1, on one stream
OURS, BASE = "ours", "base"
RELEASED = "ours-released"  # without siblings and calibration
AVERAGE = "average"

ByCell = dict[str, dict[int, dict[int, Record]]]  # stream → split → seed


@dataclass(frozen=True, eq=False)
class Truth:
    """The right answers: label columns and groups of the held-out rows by (stream, split), and of
    the guard."""

    held_out: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]]
    guard_labels: np.ndarray
    guard_groups: np.ndarray


@dataclass(frozen=True, eq=False)
class Named:
    """A cell, and what tells its recipe from others of its family, between which rotation
    chooses."""

    recipe: str
    record: Record

    @property
    def family(self) -> str:
        return str(self.record["key"]["arm"])

    @property
    def label(self) -> str:
        """The recipe, and the share of what was learnt where it is not all of it."""
        share = self.record["key"]["share"]
        return self.recipe if share == 1 else f"{self.recipe} × {share:g}".strip()


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a table: the cells of an arm, by the recipe that rotation chose where it did."""

    name: str
    cells: ByCell
    chosen: Mapping[str, str]  # stream → recipe, where there was a choice

    def records(self, stream: str) -> list[Record]:
        return [r for seeds in self.cells[stream].values() for r in seeds.values()]


def lines(cells: Iterable[Named], truth: Truth) -> list[Line]:
    """One line per recipe, and one per family of several: each stream by a recipe chosen elsewhere.

    The base comes first, the others in the order in which their first cell was measured.
    """
    families: dict[str, dict[str, ByCell]] = {BASE: {}}
    for cell in cells:
        key = cell.record["key"]
        recipe = families.setdefault(cell.family, {}).setdefault(cell.label, {})
        recipe.setdefault(key["stream"], {}).setdefault(key["split"], {})[key["seed"]] = cell.record
    base = Line(BASE, families[BASE][""], {})
    made: list[Line] = []
    for family, recipes in families.items():
        if len(recipes) > 1:
            made += _rotated(family, recipes, base, truth)
        made += [Line(f"{family} {label}".strip(), cells, {}) for label, cells in recipes.items()]
    return made


def _rotated(
    family: str, recipes: Mapping[str, ByCell], base: Line, truth: Truth
) -> Iterator[Line]:
    """The family's line, if any stream has others to choose its recipe on."""
    scores = {
        label: _scores(base, Line(label, cells, {}), truth) for label, cells in recipes.items()
    }
    tolerated = TOLERATED_GUARD_LOSS if family.startswith(OURS) else float("inf")
    chosen = rotate(scores, tolerated_loss=tolerated)
    cells = {
        stream: recipes[label][stream]
        for stream, label in chosen.items()
        if stream in recipes[label]
    }
    if cells:
        yield Line(family, cells, chosen)


def _scores(base: Line, line: Line, truth: Truth) -> dict[str, Score]:
    guard = _changes(base, line, truth)
    return {
        stream: Score(
            difference({stream: paired}, macro_f1).estimate,
            guard_change({stream: guard[stream]}, truth.guard_groups).estimate,
        )
        for stream, paired in pair(base, line, truth).items()
    }


def pair(a: Line, b: Line, truth: Truth) -> dict[str, Paired]:
    """Confusions of two lines on the cells that both have."""
    streams: dict[str, Paired] = {}
    for stream in a.cells.keys() & b.cells.keys():
        splits = {}
        for split in a.cells[stream].keys() & b.cells[stream].keys():
            ours, theirs = a.cells[stream][split], b.cells[stream][split]
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                labels, groups = truth.held_out[stream, split]
                splits[split] = (
                    np.stack([confusions(_answers(ours[s]), labels, groups) for s in seeds]),
                    np.stack([confusions(_answers(theirs[s]), labels, groups) for s in seeds]),
                )
        if splits:
            streams[stream] = dict(sorted(splits.items()))
    return dict(sorted(streams.items()))


def summarise(made: Sequence[Line], truth: Truth) -> dict[str, Any]:
    """Figures of every line, JSON-ready: per stream and averaged over domains."""
    base, ours = made[0], next((line for line in made if line.name == OURS), None)
    return {
        line.name: {
            "recipes": dict(line.chosen),
            "cells": sum(len(line.records(stream)) for stream in line.cells),
            "means": _means(line),
            "over_base": _compared(base, line, truth),
            "ours_over_it": _compared(line, ours, truth) if ours and line is not ours else {},
            "calibration": calibrated(line, truth),
            "guard_change": asdict(guard_change(_changes(base, line, truth), truth.guard_groups)),
        }
        for line in made
    }


def _means(line: Line) -> dict[str, dict[str, float]]:
    """Each stream's mean over its cells, their spread, and the average over domains."""
    per_stream = {stream: _stream_means(line.records(stream)) for stream in sorted(line.cells)}
    shares = weights(per_stream)
    names = next(iter(per_stream.values()))
    average = {
        name: sum(shares[stream] * means[name] for stream, means in per_stream.items())
        for name in names
        if all(name in means for means in per_stream.values())
    }
    return {**per_stream, AVERAGE: average}


def _stream_means(records: Sequence[Record]) -> dict[str, float]:
    costs = ("parameters", "artifact_bytes", "seconds", "idle_mb", "peak_mb")
    values = [
        {
            **record["figures"],
            **{f"guard_{name}": value for name, value in record["guard"].items()},
            **{name: record[name] for name in costs if record[name] is not None},
        }
        for record in records
    ]
    # Cells of an earlier release have fewer figures.
    names = [name for name in values[0] if all(v.get(name) is not None for v in values)]
    means = {name: float(np.mean([v[name] for v in values])) for name in names}
    return means | {"macro_f1_sd": float(np.std([v["macro_f1"] for v in values]))}


def _compared(a: Line, b: Line, truth: Truth) -> dict[str, dict[str, Any]]:
    """B − A in macro-F1 and accuracy, per stream and averaged over domains."""
    paired = pair(a, b, truth)
    parts = {stream: {stream: of_stream} for stream, of_stream in paired.items()}
    if paired:
        parts[AVERAGE] = dict(paired)
    return {
        name: {
            "macro_f1": asdict(difference(streams, macro_f1)),
            "accuracy": asdict(difference(streams, accuracy)),
        }
        for name, streams in parts.items()
    }


def calibrated(line: Line, truth: Truth) -> dict[str, dict[str, float]]:
    """What calibration changed: calibrated − uncalibrated, of log loss and Brier score, averaged
    over domains; empty where nothing was calibrated or not every cell says so."""
    every = [record for stream in line.cells for record in line.records(stream)]
    if not all(record.get("uncalibrated") for record in every):
        return {}

    def of(side: str, name: str, stream: str, split: int) -> np.ndarray:
        groups = truth.held_out[stream, split][1]
        seeds = line.cells[stream][split].values()
        return np.stack([losses(np.array(record[side][name]), groups) for record in seeds])

    def paired(name: str) -> dict[str, Paired]:
        return {
            stream: {
                split: (
                    of("uncalibrated", name, stream, split),
                    of("losses", name, stream, split),
                )
                for split in splits
            }
            for stream, splits in line.cells.items()
        }

    return {name: asdict(difference(paired(name), mean_loss)) for name in ("log_loss", "brier")}


def _changes(base: Line, line: Line, truth: Truth) -> dict[str, dict[int, np.ndarray]]:
    """Stream → split → (seeds, guard rows): 1 where the arm became right, −1 where wrong."""
    known = next(record for stream in base.cells for record in base.records(stream))
    before = (_digits(known["guard_answers"]) == truth.guard_labels).astype(int)
    return {
        stream: {
            split: np.stack([_right_on_guard(r, truth) - before for r in seeds.values()])
            for split, seeds in splits.items()
        }
        for stream, splits in line.cells.items()
    }


def _right_on_guard(record: Record, truth: Truth) -> np.ndarray:
    return (_digits(record["guard_answers"]) == truth.guard_labels).astype(int)


def _answers(record: Record) -> np.ndarray:
    return _digits(record["answers"])


def _digits(text: str) -> np.ndarray:
    """Label columns (n,) from one digit each."""
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(int) - ord("0")


# --- Tables ---------------------------------------------------------------------------------------


def figures_table(title: str, summary: Mapping[str, Any]) -> Table:
    """What each arm reached and cost, averaged over domains."""
    table = _table(
        title,
        "cells", "accuracy", "macro-F1", "± sd", "guard", "flipped",
        "trained", "MB", "s", "idle MB", "peak MB",
    )  # fmt: skip
    for name, line in summary.items():
        mean = line["means"][AVERAGE]
        table.add_row(
            name,
            str(line["cells"]),
            f"{mean['accuracy']:.3f}",
            f"{mean['macro_f1']:.3f}",
            f"{mean['macro_f1_sd']:.3f}",
            f"{mean['guard_change']:+.3f}",
            f"{mean['guard_flipped']:.3f}",
            f"{mean['parameters']:,.0f}",
            f"{mean['artifact_bytes'] / 1e6:.2f}",
            f"{mean['seconds']:.1f}",
            f"{mean['idle_mb']:,.0f}" if "idle_mb" in mean else "–",
            f"{mean['peak_mb']:,.0f}" if "peak_mb" in mean else "–",
        )
    return table


def honesty_table(title: str, summary: Mapping[str, Any]) -> Table:
    """How far each arm's probabilities can be believed, averaged over domains."""
    columns = {
        "log loss": "log_loss",
        "with the best temperature": "oracle_log_loss",
        "Brier": "brier",
        "skill": "brier_skill",
        "ECE": "ece",
        "debiased": "ece_debiased",
        "of a perfect one": "ece_floor",
    }
    table = _table(title, *columns)
    for name, line in summary.items():
        mean = line["means"][AVERAGE]
        shown = (f"{mean[figure]:.3f}" if figure in mean else "–" for figure in columns.values())
        table.add_row(name, *shown)
    return table


def differences_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Paired differences with 95 % bounds, in points."""
    table = _table(
        title, "macro-F1 − base", "accuracy − base", "guard change", "ours − it, macro-F1"
    )
    for name, line in summary.items():
        over_base = line["over_base"].get(AVERAGE)
        ours = line["ours_over_it"].get(AVERAGE)
        table.add_row(
            name,
            _points(over_base and over_base["macro_f1"]),
            _points(over_base and over_base["accuracy"]),
            _points(line["guard_change"]),
            _points(ours and ours["macro_f1"]),
        )
    return table


def calibration(summary: Mapping[str, Any]) -> Iterator[str]:
    """What calibration is worth, one sentence for each line that was calibrated."""
    for name, line in summary.items():
        if line["calibration"]:
            loss, brier = (Interval(**line["calibration"][key]) for key in ("log_loss", "brier"))
            yield (
                f"{name}, calibrated − uncalibrated: log loss {loss.estimate:+.4f} "
                f"[{loss.low:+.4f}, {loss.high:+.4f}], Brier score {brier.estimate:+.4f} "
                f"[{brier.low:+.4f}, {brier.high:+.4f}]"
            )


def undecided(summary: Mapping[str, Any]) -> Iterator[str]:
    """Streams on which ours may be worse than the base by more than the gate tolerates."""
    for name, line in summary.items():
        for stream, over in line["over_base"].items():
            low = over["macro_f1"]["low"]
            if name == OURS and stream != AVERAGE and low < -TOLERATED_LOSS:
                yield (
                    f"{name} on {stream}: undecidable on so few pages, a loss of "
                    f"{-100 * low:.1f} points of macro-F1 is not excluded"
                )


def choices(summary: Mapping[str, Any]) -> Iterator[str]:
    """What rotation chose, one sentence for each family and stream."""
    for name, line in summary.items():
        for stream, label in line["recipes"].items():
            yield f"{name} on {stream}, chosen on other domains: {label}"


def streams_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Gain in macro-F1 over the base on each stream, in points with 95 % bounds."""
    streams = sorted({stream for line in summary.values() for stream in line["means"]} - {AVERAGE})
    table = _table(title, *streams)
    for name, line in summary.items():
        gains = [line["over_base"].get(stream) for stream in streams]
        table.add_row(name, *(_points(gain and gain["macro_f1"]) for gain in gains))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column("arm", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _points(interval: Mapping[str, float] | None) -> str:
    """A difference in percentage points with its bounds."""
    if not interval:
        return "–"
    at = Interval(**interval)
    return f"{100 * at.estimate:+.1f} [{100 * at.low:+.1f}, {100 * at.high:+.1f}]"
