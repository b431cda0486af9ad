"""Does the projected learning curve hold? The later half of the verdicts is hidden from it.

    python benchmarks/curve.py --data DIR [--learner probe|adapter] [--stream NAME …]
        [--verdicts 600] [--splits 0 1 2 3 4] [--seeds 4] [--cache DIR] [--out FILE]

DIR has stream/*.jsonl.gz (premise, hypothesis, label, group). A fifth of a stream's groups is held
out; N pairs of the others are judged. The curve is measured on the first half of them at four
sizes, out of fold, by the project's own functions, and continued to N. What it should have said is
the figure of all N, out of fold: what the same page shows when they are there. Beside it, that of a
model that learnt from all N on the groups held out, which is known to an error only: there the
intervals are widened by it. Accuracy and macro-F1 of each (stream, split, seed) are two back-tests:
how many of them lie in the 80 % interval, and the interval score against a curve that stays flat.
Prints tables; fails where a limit is broken.

The learner is the project's adapter, which takes minutes a back-test, or a logistic probe on frozen
sentence embeddings and the base's logits, which takes a second and tests the projection alone.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from django.core.management import call_command
from rich.table import Table
from scipy.stats import norm

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import curves, evaluation, fitting
from adapters_app.nli import learning_curve
from adapters_app.nli.base_model import BUNDLED, Base, load_base
from adapters_app.nli.calibration import Identity
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.encoding import Pair
from adapters_app.nli.learning_curve import Measured, Projection, Range
from adapters_app.nli.predict import Predictor
from adapters_app.snapshots import SnapshotRow
from benchmarks.claims import Claim, Report, table_of, tell
from benchmarks.probe import Probe, features
from benchmarks.protocol import PARTS, Split, User, split, training_set
from benchmarks.rows import Row, read
from corrections.labels import Label

ROOT = Path(__file__).resolve().parent.parent
SIZES = 4
OUT_OF_FOLD, HELD_OUT = "all verdicts, out of fold", "groups held out"


class Learner(Protocol):
    """Something that learns from verdicts; predicted columns of LABELS come out."""

    def base(self, pairs: Sequence[Pair]) -> np.ndarray | None:
        """(n,) without any verdict; None where the curve does not start from there."""

    def out_of_fold(self, rows: Sequence[SnapshotRow], groups: set[int]) -> np.ndarray:
        """(rows,) each by a model that learnt from `groups` outside the row's fold."""

    def learnt(self, rows: Sequence[SnapshotRow], asked: Sequence[Pair]) -> np.ndarray:
        """(asked,) by a model that learnt from all rows."""


class Adapter:
    """The project's own training."""

    def __init__(self, base: Base, config: TrainConfig) -> None:
        self._base, self._config = base, config

    def base(self, pairs: Sequence[Pair]) -> np.ndarray | None:
        return Predictor(self._base).logits(pairs).argmax(1)

    def out_of_fold(self, rows: Sequence[SnapshotRow], groups: set[int]) -> np.ndarray:
        logits = fitting.out_of_fold(
            self._base, rows, self._config, groups=groups, on_step=_go_on, on_wait=_go_on
        )
        return logits.argmax(1)

    def learnt(self, rows: Sequence[SnapshotRow], asked: Sequence[Pair]) -> np.ndarray:
        fitted = fitting.fit(self._base, rows, self._config, on_step=_go_on, on_wait=_go_on)
        return Predictor(self._base, fitted.released).logits(asked).argmax(1)


class Quick:
    """The probe; without data it is no base."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def base(self, pairs: Sequence[Pair]) -> np.ndarray | None:
        return None

    def out_of_fold(self, rows: Sequence[SnapshotRow], groups: set[int]) -> np.ndarray:
        return self._probe.out_of_fold(rows, groups).argmax(1)

    def learnt(self, rows: Sequence[SnapshotRow], asked: Sequence[Pair]) -> np.ndarray:
        return self._probe.learnt(rows, asked).argmax(1)


def back_test(
    rows: Sequence[Row], parts: Split, learner: Learner, *, verdicts: int, seed: int
) -> list[dict[str, Any]]:
    """Both measures' projection from the first half of the verdicts, and what came of all."""
    draw = random.Random(seed)
    judged = draw.sample(parts.judged, min(verdicts, len(parts.judged)))
    later = _frozen([rows[i] for i in judged], seed)
    half = {(rows[i]["premise"], rows[i]["hypothesis"]) for i in judged[: len(judged) // 2]}
    # The folds are permanent: the later half changes none.
    first = [row for row in later if row.pair in half]
    sizes, measured = _curve(first, learner, seed)
    size, whole = _out_of_fold(later, learner, {row.group_id for row in later})
    became = {
        OUT_OF_FOLD: (size, learning_curve.measure(*whole)),
        HELD_OUT: (len(later), _held_out([rows[i] for i in parts.held_out], later, learner)),
    }
    return [
        {
            "measure": name,
            "truth": truth,
            "sizes": sizes,
            "seen": seen.values.tolist(),
            "verdicts": verdicts,
            **_scores(sizes, seen, verdicts, figures[name], exact=truth == OUT_OF_FOLD),
        }
        for truth, (verdicts, figures) in became.items()
        for name, seen in measured.items()
    ]


def _curve(
    rows: Sequence[SnapshotRow], learner: Learner, seed: int
) -> tuple[list[int], dict[str, Measured]]:
    sizes, answers = [], []
    start = learner.base([row.pair for row in rows])
    known = evaluation.judged(rows)
    if start is not None:
        sizes, answers = [0], [start[known.index]]
    for part in curves.nested(rows, SIZES, seed):
        size, (columns, *judged) = _out_of_fold(rows, learner, part)
        sizes.append(size)
        answers.append(columns[0])
    return sizes, learning_curve.measure(np.stack(answers), *judged)


def _out_of_fold(
    rows: Sequence[SnapshotRow], learner: Learner, part: set[int]
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Verdicts that a sibling learns from `part`, and what `measure` takes of its answers."""
    known = evaluation.judged(rows)
    size = round(float(np.mean(curves.learnt(rows, part, TrainConfig()))))
    predicted = learner.out_of_fold(rows, part)[None, known.index]
    return size, (predicted, known.labels, known.groups, known.weights)


def _held_out(
    rows: Sequence[Row], learnt: Sequence[SnapshotRow], learner: Learner
) -> dict[str, Measured]:
    """The figures of what learnt from all verdicts on other groups, with their errors."""
    predicted = learner.learnt(learnt, [(row["premise"], row["hypothesis"]) for row in rows])
    truth = np.array([Label(row["label"]).column for row in rows])
    groups = np.unique([row["group"] for row in rows], return_inverse=True)[1]
    return learning_curve.measure(predicted[None], truth, groups, np.ones(len(rows)))


def _scores(
    sizes: Sequence[int], seen: Measured, verdicts: int, became: Measured, *, exact: bool
) -> dict[str, Any]:
    """Both intervals against what became; unless that is `exact`, with its error added."""
    value = float(became.values[0])
    error = 0.0 if exact else float(np.sqrt(became.covariance[0, 0]))
    projected = Projection(np.array(sizes), seen).at(verdicts)
    return {
        "became": value,
        "error": error,
        **scored("projected", widened(projected, error), value),
        **scored("flat", widened(learning_curve.flat(seen), error), value),
    }


def widened(found: Range, error: float) -> Range:
    """An 80 % interval for what is measured with a standard error of its own."""
    more = float(norm.ppf((1 + learning_curve.LEVEL) / 2)) * error
    return Range(
        found.median,
        found.median - float(np.hypot(found.median - found.low, more)),
        found.median + float(np.hypot(found.high - found.median, more)),
    )


def scored(name: str, found: Range, became: float) -> dict[str, Any]:
    return {
        name: [found.low, found.median, found.high],
        f"{name}_covers": bool(found.low <= became <= found.high),
        f"{name}_score": learning_curve.interval_score(found, became),
    }


def _frozen(rows: Sequence[Row], seed: int) -> list[SnapshotRow]:
    """All rows judged, each with a known probability."""
    said = User(audits=1.0).judge(
        rows,
        Identity().predict_proba(np.zeros((len(rows), 3))),
        budget=len(rows),
        draw=random.Random(seed),
    )
    return training_set(said)


def _go_on(*_: Any) -> None:
    """Nobody asks a benchmark to stop."""


def told(results: Sequence[dict[str, Any]]) -> Report:
    """Tables, the back-tests themselves, and what is asked of them."""
    report = Report(figures={"back-tests": list(results)})
    for truth in (OUT_OF_FOLD, HELD_OUT):
        found = [row for row in results if row["truth"] == truth]
        covers, score, flat = (
            float(np.mean([row[name] for row in found]))
            for name in ("projected_covers", "projected_score", "flat_score")
        )
        report.tables.append(_table(found, truth))
        report.claims += [
            Claim(f"{truth}: the 80 % interval covers", covers, low=0.7, high=0.9),
            Claim(f"{truth}: score as a multiple of a flat curve's", score / flat, high=1.0),
        ]
    return report


def _table(found: Sequence[dict[str, Any]], truth: str) -> Table:
    """One line per stream and measure, and one for all."""
    shown = table_of(
        f"80 % intervals at twice the verdicts; what became: {truth}",
        ("stream", "measure"),
        ("n", "covers", "flat covers", "score", "flat score", "mean miss"),
    )
    keys = sorted({(row["stream"], row["measure"]) for row in found})
    for stream, measure in [*keys, ("all", "both")]:
        own = [
            row
            for row in found
            if stream == "all" or (row["stream"], row["measure"]) == (stream, measure)
        ]
        cells = (
            np.mean([row["projected_covers"] for row in own]),
            np.mean([row["flat_covers"] for row in own]),
            np.mean([row["projected_score"] for row in own]),
            np.mean([row["flat_score"] for row in own]),
            np.mean([row["became"] - row["projected"][1] for row in own]),
        )
        shown.add_row(stream, measure, str(len(own)), *(f"{cell:.3f}" for cell in cells))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--learner", choices=["probe", "adapter"], default="probe")
    parser.add_argument("--stream", nargs="+", help="only these")
    parser.add_argument("--verdicts", type=int, default=600, help="in all; half of them is seen")
    parser.add_argument("--splits", type=int, nargs="+", default=list(range(PARTS)))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--base", default=BUNDLED)
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--cache", type=Path, default=results / "curve")
    parser.add_argument("--out", type=Path, default=results / "curve.json")
    options = parser.parse_args()

    call_command("migrate", verbosity=0)
    base = load_base(options.base)
    found: list[dict[str, Any]] = []
    for path in sorted((options.data / "stream").glob("*.jsonl.gz")):
        stream = path.name.split(".")[0]
        if options.stream and stream not in options.stream:
            continue
        rows = read([path])
        if options.learner == "probe":
            kept = options.cache / f"{stream}.npy"
            quick = Quick(Probe(features(rows, base, kept)))
            learners: dict[int, Learner] = dict.fromkeys(range(options.seeds), quick)
        else:
            learners = {
                seed: Adapter(base, replace(TrainConfig(), seed=seed))
                for seed in range(options.seeds)
            }
        for number in options.splits:
            for seed, learner in learners.items():
                tested = back_test(
                    rows, split(rows, number), learner, verdicts=options.verdicts, seed=seed
                )
                at = {"stream": stream, "split": number, "seed": seed}
                found += [{**at, **each} for each in tested]
                print(found[-1], file=sys.stderr, flush=True)
    return tell(told(found), options.out)


if __name__ == "__main__":
    sys.exit(main())
