"""Do figures from live answers drawn by two lots hold, and what do disagreements buy?

    python benchmarks/sampling.py [--trials 1000] [--answers 1500] [--out FILE]

Live answers of two models of known accuracy are drawn as `corrections.audits` describes: by audits
and, where the models disagree, by a second lot; or by audits alone, as many in the mean. And by
lots for an earlier candidate than the one that is compared. Prints how often the 95 % intervals
hold the truth and how wide they are; fails where a limit is broken.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from adapters_app.nli import hajek, metrics
from adapters_app.nli.hajek import Share
from adapters_app.nli.metrics import Difference
from benchmarks.gate import RESULTS, Claim, Report, tell
from benchmarks.populations import Population, Trial, even_pages, uneven_pages

AUDITS, DISAGREEMENTS = 0.05, 0.5
FEW_AUDITS = 0.01  # beside every disagreement
# Pages about one claim, whose answers are right or wrong together so often.
PAGES, ALIKE, AUDITED, RIGHT = (1, 3, 6), 0.8, 300, 0.7
GAIN = metrics.STATED_EFFECT
# Lots for an earlier candidate: on what share of the answers it differed, and how often the one
# that is compared differs there and elsewhere. Elsewhere it loses whatever it gains there.
EARLIER, THERE, ELSEWHERE = 0.2, 0.7, 0.04
STALE_VERDICTS = (300, 600)
Estimator = Callable[[Trial], Share | Difference]


@dataclass(frozen=True)
class Lots:
    """Chance of an audit, and of the second lot that counts where the two models disagree."""

    audits: float
    disagreements: float

    def draw(self, live: Trial, rng: np.random.Generator) -> Trial:
        """Those of the live answers that are drawn, each with its inverse probability."""
        differ = disagree(live)
        audit, other = rng.random((2, len(live))) < [[self.audits], [self.disagreements]]
        both = self.audits + (1 - self.audits) * self.disagreements
        kept = audit | (other & differ)
        return Trial(
            live.incumbent[kept],
            live.candidate[kept],
            live.labels[kept],
            live.groups[kept],
            1 / np.where(differ, both, self.audits)[kept],
        )

    def alone(self, disagreement: float) -> "Lots":
        """Audits alone that draw as many, where the models disagree on such a share."""
        return Lots(self.audits + (1 - self.audits) * self.disagreements * disagreement, 0.0)


@dataclass(frozen=True)
class Interval:
    """What became of one figure's intervals over all trials."""

    covered: float  # share that holds the truth
    width: float  # mean
    bias: float  # mean error of the estimate
    rows: float  # mean number of verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=1500, help="live answers in each trial")
    parser.add_argument("--out", type=Path, default=RESULTS / "sampling.json")
    options = parser.parse_args()
    report = Report()
    for population in (even_pages(), uneven_pages()):
        _add(report, population, options.answers, options.trials)
    _add_stale(report, options.trials)
    _add_claims(report, options.trials)
    return tell(report, options.out)


def disagree(live: Trial) -> np.ndarray:
    """(n,) whether the two models answer differently."""
    differ: np.ndarray = live.incumbent.argmax(1) != live.candidate.argmax(1)
    return differ


def accuracy(drawn: Trial) -> Share:
    """How often what serves is right, as `live` estimates it."""
    right = drawn.incumbent.argmax(1) == drawn.labels
    return hajek.share(right, drawn.weights, drawn.groups)


def gain(drawn: Trial) -> Difference:
    """Accuracy of the candidate less that of what serves, as a shadow evaluation estimates it."""
    before, after = (each.argmax(1) == drawn.labels for each in (drawn.incumbent, drawn.candidate))
    values = after.astype(float) - before
    return metrics.paired_difference(values, drawn.groups, drawn.weights, seed=0)


def true_accuracy(population: Population, gained: float) -> float:
    """Accuracy of what serves in trials in which the candidate gains that much."""
    right_a, right_b = (p.argmax(1) == population.labels for p in (population.a, population.b))
    return float((right_a.mean() + right_b.mean() - gained) / 2)


def measure(
    estimate: Estimator,
    truth: float,
    lots: Lots,
    population: Population,
    *,
    answers: int,
    trials: int,
    weighted: bool = True,
) -> Interval:
    """One figure in `trials` draws; not weighted: as if all had been drawn with one chance."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        drawn = lots.draw(population.draw(answers, GAIN, rng), rng)
        if not weighted:
            drawn.weights[:] = 1
        said = estimate(drawn)
        found["covered"].append(said.low <= truth <= said.high)
        found["width"].append(said.high - said.low)
        found["bias"].append(said.estimate - truth)
        found["rows"].append(len(drawn))
    return Interval(**{name: float(np.mean(values)) for name, values in found.items()})


def better_of_equals(lots: Lots, population: Population, *, answers: int, trials: int) -> float:
    """Share of trials in which the interval of the gain lies above 0 although there is none."""
    wrong = 0
    for seed in range(trials):
        rng = np.random.default_rng([seed, 1])
        wrong += gain(lots.draw(population.draw(answers, 0.0, rng), rng)).low > 0
    return wrong / trials


def stale(lots: Lots, *, verdicts: int, trials: int) -> tuple[float, float]:
    """An equal of what serves, on pages of a row each that were drawn for an earlier candidate:
    shares of trials in which it is “better”, and in which the interval holds the truth, 0."""
    both = lots.audits + (1 - lots.audits) * lots.disagreements
    drawn_often = EARLIER * both / (EARLIER * both + (1 - EARLIER) * lots.audits)
    won = (1 + ELSEWHERE * (1 - EARLIER) / (THERE * EARLIER)) / 2
    better = covered = 0
    for seed in range(trials):
        rng = np.random.default_rng([seed, verdicts])
        often = rng.random(verdicts) < drawn_often
        differs = rng.random(verdicts) < np.where(often, THERE, ELSEWHERE)
        gained = rng.random(verdicts) < np.where(often, won, 0.0)
        values = np.where(differs, np.where(gained, 1.0, -1.0), 0.0)
        weights = 1 / np.where(often, both, lots.audits)
        found = metrics.paired_difference(values, np.arange(verdicts), weights)
        better += found.low > 0
        covered += found.low <= 0 <= found.high
    return better / trials, covered / trials


def _add_stale(report: Report, trials: int) -> None:
    table = Table(title="Equals, drawn by lots for an earlier candidate")
    for column in ("audits", "disagreements", "verdicts", "better", "covered"):
        table.add_column(column)
    for audits, disagreements in ((AUDITS, 0.5), (0.02, 0.5), (0.02, 1.0), (FEW_AUDITS, 0.5)):
        for verdicts in STALE_VERDICTS:
            lots = Lots(audits, disagreements)
            better, covered = stale(lots, verdicts=verdicts, trials=trials)
            table.add_row(
                f"{audits:.0%}",
                f"{disagreements:.0%}",
                str(verdicts),
                f"{better:.1%}",
                f"{covered:.1%}",
            )
            name = f"lots of before, {audits:.0%} and {disagreements:.0%}, {verdicts}"
            report.figures[name] = {"better": better, "covered": covered}
            report.claims += [
                Claim(f"{name}: better of equals", better, high=0.05),
                Claim(f"{name}: covered", covered, low=0.93),
            ]
    report.tables.append(table)


def covered_by_claim(pages: int, *, trials: int) -> tuple[float, float]:
    """Share of trials in which live accuracy's interval holds the truth, and with claims ignored.

    AUDITED answers, each on a page of its own, so many pages about each claim.
    """
    claims, every = np.arange(AUDITED) // pages, np.arange(AUDITED)
    covered = np.zeros(2)
    for seed in range(trials):
        rng = np.random.default_rng([seed, pages])
        own, together = rng.random((2, AUDITED)) < RIGHT
        right = np.where(rng.random(AUDITED) < ALIKE, together[claims], own)
        weights = np.full(AUDITED, 1 / AUDITS)
        found = (hajek.share(right, weights, every, known) for known in (claims, None))
        covered += [each.low <= RIGHT <= each.high for each in found]
    known, ignored = covered / trials
    return float(known), float(ignored)


def _add_claims(report: Report, trials: int) -> None:
    table = Table(title=f"{AUDITED} audits on a page each, claims right together in {ALIKE:.0%}")
    for column in ("pages about one claim", "accuracy covered", "claims ignored"):
        table.add_column(column)
    for pages in PAGES:
        known, ignored = covered_by_claim(pages, trials=trials)
        table.add_row(str(pages), f"{known:.1%}", f"{ignored:.1%}")
        report.figures[f"{pages} pages about one claim"] = {"covered": known, "ignored": ignored}
        report.claims.append(Claim(f"{pages} pages a claim: accuracy covered", known, 0.93, 0.97))
    report.tables.append(table)


def _add(report: Report, population: Population, answers: int, trials: int) -> None:
    both = Lots(AUDITS, DISAGREEMENTS)
    differ = float((population.a.argmax(1) != population.b.argmax(1)).mean())
    arms = {
        "both lots": (both, True),
        "both lots, probabilities ignored": (both, False),
        "audits alone, as many": (both.alone(differ), True),
    }
    figures: dict[str, tuple[Estimator, float]] = {
        "accuracy": (accuracy, true_accuracy(population, GAIN)),
        "gain": (gain, GAIN),
    }
    table = Table(title=f"{population.name}: {answers} answers, {differ:.0%} disagreements")
    for column in ("figure", "drawn by", "verdicts", "bias", "covered", "width"):
        table.add_column(column)
    found = {}
    for figure, (estimate, truth) in figures.items():
        for arm, (lots, weighted) in arms.items():
            each = measure(
                estimate,
                truth,
                lots,
                population,
                answers=answers,
                trials=trials,
                weighted=weighted,
            )
            found[figure, arm] = each
    few = measure(
        accuracy,
        true_accuracy(population, GAIN),
        Lots(FEW_AUDITS, 1.0),
        population,
        answers=answers,
        trials=trials,
    )
    found["accuracy", "few audits, all disagreements"] = few
    for (figure, arm), each in found.items():
        table.add_row(
            figure,
            arm,
            f"{each.rows:.0f}",
            f"{100 * each.bias:+.1f}",
            f"{each.covered:.1%}",
            f"{100 * each.width:.1f}",
        )
    report.tables.append(table)
    report.figures[population.name] = {
        f"{figure}, {arm}": vars(each) for (figure, arm), each in found.items()
    }
    with_both, ignored, alone = arms
    name = population.name
    equals = better_of_equals(both, population, answers=answers, trials=trials)
    narrower = found["gain", with_both].width / found["gain", alone].width
    report.claims += [
        Claim(f"{name}: accuracy covered", found["accuracy", with_both].covered, 0.93, 0.97),
        Claim(f"{name}: accuracy covered, few audits", few.covered, low=0.93),
        Claim(f"{name}: accuracy ignored", found["accuracy", ignored].covered, high=0.5),
        Claim(f"{name}: gain covered", found["gain", with_both].covered, low=0.93),
        Claim(f"{name}: gain ignored", found["gain", ignored].covered, high=0.85),
        Claim(f"{name}: better of equals", equals, high=0.05),
        Claim(f"{name}: width of the gain, both lots / audits", narrower, high=0.9),
    ]


if __name__ == "__main__":
    sys.exit(main())
