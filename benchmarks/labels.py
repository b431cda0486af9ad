"""Bad labels on real data: are exchanged labels ranked first, and a careless annotator last?

    python benchmarks/labels.py --data DIR [--stream NAME …] [--verdicts N …] [--seeds 1]
        [--learner adapter|probe] [--noise none flips-10 flips-20 stamps] [--cache DIR] [--out FILE]

DIR has stream/*.jsonl.gz (premise, hypothesis, label, group). N pairs of a stream, drawn at random,
are judged. Of the verdicts a tenth or a fifth get another label at random (flips-10, flips-20), or
the last of four annotators confirms whatever the model said (stamps). The five siblings are trained
on what was said by the project's own functions, and their out-of-fold probabilities kept in the
cache: a case that is there is not trained again. A logistic probe on frozen features may stand in
for the siblings: seconds instead of minutes, and other figures.

The oracle ranks flips by siblings trained and calibrated on the true labels (none), mean over 200
draws of the flips. The annotators' ranking is simulated 400 times from the case's own answers:
sources are drawn with replacement, the verdicts of the careful three dealt out anew.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

import numpy as np
from django.core.management import call_command
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import benchmarks.home  # noqa: F401  Django first

# isort: split
from adapters_app import evaluation
from adapters_app.fitting import FitStep, fit
from adapters_app.nli.base_model import BUNDLED, Base, load_base
from adapters_app.nli.calibration import Identity
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.label_noise import careless_share, self_confidence
from adapters_app.nli.predict import Predictor
from benchmarks.probe import Probe, features
from benchmarks.protocol import User, Verdict, training_set
from benchmarks.rows import Row, read
from corrections.labels import LABELS, Label

ROOT = Path(__file__).resolve().parent.parent
FLIPS = {"flips-10": 0.1, "flips-20": 0.2}
NOISES = ("none", *FLIPS, "stamps")
ANNOTATORS = 4
CARELESS = ANNOTATORS - 1
REVIEWED = 0.2  # the share of all verdicts that is read again
ORACLE_DRAWS, SIMULATIONS = 200, 400


@dataclass(frozen=True)
class Case:
    """One training: on which verdicts, and what is wrong with them."""

    stream: str
    verdicts: int
    noise: str
    seed: int
    learner: str = "adapter"

    @property
    def name(self) -> str:
        return f"{self.learner}-{self.stream}-{self.verdicts}-{self.noise}-{self.seed}"


@dataclass(frozen=True, eq=False)
class Answers:
    """Out-of-fold probabilities (n, 3), and columns of LABELS and other facts, (n,) each."""

    probabilities: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    shown: np.ndarray  # what the base had said
    annotators: np.ndarray
    groups: np.ndarray

    @property
    def flipped(self) -> np.ndarray:
        return self.given != self.truth


class Bench:
    """The base, its answers to each stream, and the trainings that were already done."""

    def __init__(self, data: Path, cache: Path, base: Base) -> None:
        self.data, self.cache, self.base = data, cache, base
        cache.mkdir(parents=True, exist_ok=True)

    def answers(self, case: Case) -> Answers:
        """Those of the cache, else of a training."""
        path = self.cache / f"{case.name}.npz"
        if not path.exists():
            np.savez(path, **vars(self._train(case)))
        with np.load(path) as stored:
            return Answers(**stored)

    def _train(self, case: Case) -> Answers:
        stream = read([self.data / "stream" / f"{case.stream}.jsonl.gz"])
        rows = random.Random(case.seed).sample(stream, min(case.verdicts, len(stream)))
        pairs = [(row["premise"], row["hypothesis"]) for row in rows]
        base_logits = Predictor(self.base).logits(pairs)
        shown = base_logits.argmax(1)
        truth = np.array([Label(row["label"]).column for row in rows])
        given, annotators = spoilt(case, truth, shown)
        said = [{**row, "label": LABELS[k].value} for row, k in zip(rows, given, strict=True)]
        frozen = training_set(_verdicts(said, base_logits, case.seed))
        at = {(row["premise"], row["hypothesis"]): i for i, row in enumerate(rows)}
        index = np.array([at[row.pair] for row in frozen])  # doors may refuse some
        if case.learner == "probe":
            known = features(stream, self.base, self.cache / f"{case.stream}.npy")
            every = {row.group_id for row in frozen}
            logits = np.log(Probe(known).out_of_fold(frozen, every) + 1e-6)
        else:
            config = replace(TrainConfig(), seed=case.seed)
            logits = fit(self.base, frozen, config, on_step=_go_on, on_wait=_go_on).logits
        calibrator, _ = evaluation.calibrate(logits, frozen)
        return Answers(
            probabilities=evaluation.cross_fitted(calibrator, logits, frozen),
            given=given[index],
            truth=truth[index],
            shown=shown[index],
            annotators=annotators[index],
            groups=np.array([row.group_id for row in frozen]),
        )


def spoilt(case: Case, truth: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels people give instead of the true ones, and which of the annotators did."""
    rng = np.random.default_rng(case.seed)
    annotators = rng.integers(0, ANNOTATORS, len(truth))
    if case.noise == "stamps":
        return np.where(annotators == CARELESS, shown, truth), annotators
    return flipped(truth, FLIPS.get(case.noise, 0.0), rng), annotators


def flipped(truth: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The labels, a share of them exchanged for one of the others."""
    others = (truth + rng.integers(1, len(LABELS), len(truth))) % len(LABELS)
    return np.where(rng.random(len(truth)) < rate, others, truth)


def _verdicts(rows: Sequence[Row], logits: np.ndarray, seed: int) -> list[Verdict]:
    """All rows judged, each with a known probability."""
    probabilities = Identity().predict_proba(logits)
    draw = random.Random(seed)
    return User(audits=1.0).judge(rows, probabilities, budget=len(rows), draw=draw)


def _go_on(_step: FitStep | None = None) -> None:
    """Nobody asks a benchmark to stop."""


# --- Figures --------------------------------------------------------------------------------------


def ranking(probabilities: np.ndarray, given: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """How well suspicion ranks wrong labels: AUROC, and their share in the part read again."""
    sound = self_confidence(probabilities, given)
    read_again = np.argsort(sound, kind="stable")[: round(REVIEWED * len(given))]
    return {
        "auroc": float(roc_auc_score(wrong, -sound)),
        "found": float(wrong[read_again].sum() / wrong.sum()),
    }


def oracle(clean: Answers, rate: float) -> dict[str, float]:
    """The ranking by a model that learnt the true labels: what this recipe can tell at best."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(ORACLE_DRAWS):
        given = flipped(clean.truth, rate, rng)
        drawn.append(ranking(clean.probabilities, given, given != clean.truth))
    return {name: float(np.mean([each[name] for each in drawn])) for name in drawn[0]}


def ranked_last(answers: Answers, *, simulations: int = SIMULATIONS) -> float:
    """Share of simulations in which the careless one of the annotators looks most careless."""
    rng = np.random.default_rng(0)
    _, pages = np.unique(answers.groups, return_inverse=True)
    of_page = [np.flatnonzero(pages == page) for page in range(pages.max() + 1)]
    sound = self_confidence(answers.probabilities, answers.given)
    confirmed = answers.given == answers.shown
    last = 0
    for _ in range(simulations):
        drawn = np.concatenate(
            [of_page[page] for page in rng.integers(0, len(of_page), len(of_page))]
        )
        careful = rng.integers(0, CARELESS, len(drawn))
        who = np.where(answers.annotators[drawn] == CARELESS, CARELESS, careful)
        looks = [
            careless_share(sound[drawn[who == person]], confirmed[drawn[who == person]]).mean
            for person in range(ANNOTATORS)
        ]
        last += int(np.argmax(looks)) == CARELESS
    return last / simulations


def figures(bench: Bench, case: Case, *, with_oracle: bool) -> dict[str, Any]:
    """Everything that a case says."""
    answers = bench.answers(case)
    found: dict[str, Any] = {
        **asdict(case),
        "n": len(answers.given),
        "wrong": int(answers.flipped.sum()),
        "accuracy": float((answers.probabilities.argmax(1) == answers.truth).mean()),
    }
    if case.noise in FLIPS:
        found |= ranking(answers.probabilities, answers.given, answers.flipped)
        if with_oracle:
            clean = bench.answers(replace(case, noise="none"))
            found["oracle"] = oracle(clean, FLIPS[case.noise])
    if case.noise == "stamps":
        found["ranked_last"] = ranked_last(answers)
    return found


def table(results: Sequence[dict[str, Any]]) -> Table:
    """One line per stream, size and noise: means over the seeds."""
    shown = Table(title="doubts about labels and about annotators")
    for column in ("stream", "noise"):
        shown.add_column(column, no_wrap=True)
    for column in ("n", "wrong", "accuracy", "AUROC", "oracle", "found", "oracle", "last"):
        shown.add_column(column, justify="right", no_wrap=True)
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in results:
        cases[row["stream"], row["verdicts"], row["noise"]].append(row)
    for (stream, _, noise), rows in cases.items():
        bounds = [row.get("oracle", {}) for row in rows]
        shown.add_row(
            stream,
            noise,
            _mean(rows, "n", digits=0),
            _mean(rows, "wrong", digits=0),
            _mean(rows, "accuracy"),
            _mean(rows, "auroc"),
            _mean(bounds, "auroc"),
            _mean(rows, "found"),
            _mean(bounds, "found"),
            _mean(rows, "ranked_last"),
        )
    return shown


def _mean(rows: Sequence[dict[str, Any]], name: str, *, digits: int = 3) -> str:
    values = [row[name] for row in rows if name in row]
    return f"{np.mean(values):.{digits}f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stream", nargs="+", help="only these")
    parser.add_argument("--verdicts", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--learner", choices=["adapter", "probe"], default="adapter")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--base", default=BUNDLED)
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--cache", type=Path, default=results / "labels")
    parser.add_argument("--out", type=Path, default=results / "labels.json")
    options = parser.parse_args()

    call_command("migrate", verbosity=0)
    bench = Bench(options.data, options.cache, load_base(options.base))
    streams = [p.name.split(".")[0] for p in sorted((options.data / "stream").glob("*.jsonl.gz"))]
    found = []
    for verdicts in options.verdicts:
        for stream in options.stream or streams:
            for noise, seed in product(options.noise, range(options.seeds)):
                case = Case(stream, verdicts, noise, seed, options.learner)
                found.append(figures(bench, case, with_oracle="none" in options.noise))
                print(found[-1], file=sys.stderr, flush=True)
    Console(width=120).print(table(found))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
