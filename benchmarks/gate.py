"""How often is the gate wrong, and what does it see? Back-tests of every decision rule.

    python benchmarks/gate.py [--data DIR [--stream NAME …] [--verdicts 300]] [--quick]
        [--trials 2000] [--out FILE]

With DIR (stream/*.jsonl.gz) trials are drawn from the answers of the base and of adapters trained
here to real rows; without it from synthetic pairs of models, which need none. The true gain of the
candidate is known in every trial, see `populations`; one that the two models do not differ by is
left out, and named. Prints tables; fails where a limit is broken.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds the project

from adapters_app.nli import guard, hajek, metrics
from adapters_app.nli.betting import bet_on_gain
from adapters_app.nli.slices import compare_slices
from benchmarks.claims import Claim, Report, table_of, tell
from benchmarks.populations import (
    Population,
    RealPair,
    Trial,
    even_pages,
    pages_of,
    real,
    retrained,
    uneven_pages,
)
from corrections.labels import LABELS

RESULTS = Path(__file__).resolve().parent / "results"
RECOMMENDED = {"better", "not_worse"}
VERDICTS = (60, 100, 150, 200, 300, 400, 600, 1000)
AT = 300  # verdicts at which wrong decisions are counted
SEEDS_RULE_ROWS = 20  # “new ≥ old - 0.02” on a 20 % holdout of 100 verdicts
GUARD_SETS = 2000  # simulated
# Flipped shares of a guard set to show power for; a loss of 5 points needs at least 5 %.
FLIPPED = (0.06, 0.08, 0.10, 0.12, 0.15, 0.17, 0.20)
PILOT = 200
COPIED = 25  # trials of each population whose rows are copied
RETRAINED = 10  # candidates that are compared with one incumbent, one after another
ATTEMPTS = (1, 3, 10)  # at which power is shown
DOMAINS = 5  # that pages are of, where slices are looked at
LOST_ON_A_LABEL = (0.10, 0.20, 0.30)

Draw = Callable[[int, float, np.random.Generator], Trial]


@dataclass
class Rates:
    """What became of trials of one kind, as shares of them."""

    rows: int
    gain: float
    trials: int
    better: float
    recommended: float
    inconclusive: float
    covered: float  # the 95 % interval holds the true gain
    seeds_rule: float  # passed by “new ≥ old - 0.02” on 20 of the rows
    effective_groups: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="with stream/*.jsonl.gz; else synthetic pairs")
    parser.add_argument("--stream", nargs="+", help="only these")
    parser.add_argument("--verdicts", type=int, default=300, help="an adapter learns from")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--cache", type=Path, default=RESULTS, help="keeps the models' answers")
    parser.add_argument("--out", type=Path, default=RESULTS / "gate.json")
    options = parser.parse_args()
    trials = max(options.trials // 10, 20) if options.quick else options.trials

    if options.data:
        found = real(options.data, options.cache, streams=options.stream, verdicts=options.verdicts)
        report = back_test([pair.stream for pair in found], trials)
        _guard_of_real_pairs(report, found)
    else:
        report = back_test([even_pages(), uneven_pages()], trials)
    return tell(report, options.out)


def back_test(populations: Sequence[Population], trials: int) -> Report:
    """Every rule on every population; curves take a quarter of the trials per point."""
    report = Report()
    _wrong_decisions(report, populations, trials)
    _giant_page(report, trials)
    _copies(report, populations)
    _slices(report, populations, trials)
    _alike(report, trials)
    _tried_again(report, trials)
    _power_at_attempts(report, populations, max(trials // 10, 20))
    _power(report, populations, max(trials // 4, 20))
    _needed_pairs(report, populations, max(trials // 2, 20))
    _confirmation(report, populations, max(trials // 2, 20))
    _gain_taken_back(report, max(trials // 2, 20))
    _guard_power(report)
    return report


def rates(draw: Draw, rows: int, gain: float, trials: int) -> Rates:
    """Judge `trials` candidates whose true gain is `gain` on about `rows` verdicts each."""
    verdicts, covered, seeds_rule, groups = [], 0, 0, 0.0
    for seed in range(trials):
        rng = np.random.default_rng([seed, rows])
        trial = draw(rows, gain, rng)
        found = compare(trial)
        verdicts.append(metrics.gate(found))
        covered += found.accuracy.low <= gain <= found.accuracy.high
        seeds_rule += _passes_seeds_rule(trial, rng)
        groups += found.effective_groups
    return Rates(
        rows=rows,
        gain=gain,
        trials=trials,
        better=verdicts.count("better") / trials,
        recommended=sum(verdict in RECOMMENDED for verdict in verdicts) / trials,
        inconclusive=verdicts.count("inconclusive") / trials,
        covered=covered / trials,
        seeds_rule=seeds_rule / trials,
        effective_groups=groups / trials,
    )


def compare(trial: Trial, *, attempt: int = 1) -> metrics.Comparison:
    """The comparison that a shadow evaluation makes."""
    return metrics.compare(
        trial.incumbent,
        trial.candidate,
        trial.labels,
        trial.groups,
        trial.weights,
        level=metrics.spent_level(attempt),
    )


def _passes_seeds_rule(trial: Trial, rng: np.random.Generator) -> bool:
    some = rng.permutation(len(trial))[:SEEDS_RULE_ROWS]
    old, new = (
        float((each[some].argmax(1) == trial.labels[some]).mean())
        for each in (trial.incumbent, trial.candidate)
    )
    return new >= old - metrics.TOLERATED_LOSS - 1e-9


def designs(population: Population) -> Iterator[tuple[str, Draw]]:
    """The ways verdicts come about: all rows alike, or drawn with known probabilities."""
    yield population.name, population.draw
    yield (
        f"{population.name}, drawn with known chances",
        lambda rows, gain, rng: population.draw(rows, gain, rng, weighted=True),
    )


def _apart(population: Population, gain: float) -> bool:
    """Whether its models differ enough for such a gain to be drawn."""
    return abs(population.gain) >= abs(gain)


def _only(population: Population) -> str:
    return f"they differ by {100 * population.gain:+.1f}"


# --- Wrong decisions ------------------------------------------------------------------------------


def _wrong_decisions(report: Report, populations: Sequence[Population], trials: int) -> None:
    table = table_of(
        f"Wrong decisions on about {AT} verdicts ({trials} trials per cell)",
        ("pair of models",),
        ("eff. pages", "“better” of equals", "recommended at −5", "seeds' rule at −5", "coverage"),
    )
    for population in populations:
        gains = [0.0, -0.05] if _apart(population, -0.05) else [0.0]
        for name, draw in designs(population):
            null, *others = found = [rates(draw, AT, gain, trials) for gain in gains]
            covered = float(np.mean([each.covered for each in found]))
            report.figures[f"wrong decisions: {name}"] = [asdict(each) for each in found]
            report.claims += [
                Claim(f"{name}: “better” of equals", null.better, high=0.05),
                Claim(f"{name}: interval coverage", covered, low=0.93),
            ]
            at_worse = [_only(population), ""]
            for worse in others:
                recommended = f"{name}: recommended at -5 points"
                report.claims.append(Claim(recommended, worse.recommended, high=0.05))
                at_worse = [_percent(worse.recommended), _percent(worse.seeds_rule)]
            table.add_row(
                name,
                f"{null.effective_groups:.0f}",
                _percent(null.better),
                *at_worse,
                _percent(covered),
            )
    report.tables.append(table)


def _giant_page(report: Report, trials: int) -> None:
    """35 pages, one of 300 rows: what the interval is worth, and that no verdict is given."""
    small, giant = pages_of(9), pages_of(300)

    def draw(rows: int, gain: float, rng: np.random.Generator) -> Trial:
        others = small.draw(rows, gain, rng)
        return others.and_then(giant.draw(300, gain, rng))

    found = rates(draw, 34 * 9, 0.05, trials)
    report.figures["35 pages, one of 300 rows"] = asdict(found)
    report.claims += [
        Claim("35 pages, one of 300 rows: interval coverage", found.covered, low=0.93),
        Claim("35 pages, one of 300 rows: inconclusive", found.inconclusive, low=1.0),
    ]


def _copies(report: Report, populations: Sequence[Population]) -> None:
    """Every row five times: the interval of the same pages must not narrow."""
    ratios = []
    for population in populations:
        for seed in range(COPIED):
            trial = population.draw(AT, 0.0, np.random.default_rng(seed))
            copied = Trial(*(np.repeat(part, 5, axis=0) for part in vars(trial).values()))
            once, five_times = (compare(each).accuracy for each in (trial, copied))
            ratios.append((five_times.high - five_times.low) / (once.high - once.low))
    report.figures["interval width, rows copied five times"] = ratios
    least = "least width with every row five times, as a multiple"
    report.claims.append(Claim(least, min(ratios), low=0.99))


# --- Slices ---------------------------------------------------------------------------------------


def _slices(report: Report, populations: Sequence[Population], trials: int) -> None:
    """How often a slice of equals is called lost, and how often a label that is answered worse."""
    table = table_of(
        f"A label or one of {DOMAINS} domains called lost, {AT} verdicts ({trials} trials)",
        ("pair of models",),
        ("equals", *(f"a label {100 * loss:.0f} points worse" for loss in LOST_ON_A_LABEL)),
    )
    for population in populations:
        for name, draw in designs(population):
            drawn = [draw(AT, 0.0, np.random.default_rng([seed, AT])) for seed in range(trials)]
            of_equals = float(np.mean([bool(lost_slices(trial)) for trial in drawn]))
            some = drawn[: max(trials // 4, 1)]
            power = [_label_found(some, loss) for loss in LOST_ON_A_LABEL]
            report.figures[f"slices: {name}"] = {
                "equals": of_equals,
                "a label worse by": dict(zip(LOST_ON_A_LABEL, power, strict=True)),
            }
            report.claims.append(Claim(f"{name}: a slice of equals is lost", of_equals, high=0.05))
            table.add_row(name, *(_percent(share) for share in (of_equals, *power)))
    report.tables.append(table)


def _label_found(trials: Sequence[Trial], loss: float) -> float:
    """How often a label that the candidate answers worse by `loss` is among the lost slices."""
    found = [
        str(seed % len(LABELS)) in lost_slices(worse_at(trial, seed % len(LABELS), loss, seed))
        for seed, trial in enumerate(trials)
    ]
    return float(np.mean(found))


def worse_at(trial: Trial, label: int, loss: float, seed: int) -> Trial:
    """A candidate that gives another answer to `loss` more of the pairs of one label, by luck."""
    rng = np.random.default_rng(seed)
    of_label = trial.labels == label
    right = of_label & (trial.candidate.argmax(1) == label)
    spoilt = right & (rng.random(len(trial)) < loss * of_label.sum() / max(right.sum(), 1))
    candidate = trial.candidate.copy()
    candidate[spoilt] = np.roll(candidate[spoilt], 1, axis=1)
    return replace(trial, candidate=candidate)


def lost_slices(trial: Trial) -> set[str]:
    """Names of the slices that a shadow evaluation calls lost: labels, and pages' domains."""
    found = compare_slices(
        {
            "label": trial.labels.astype(str),
            "domain": np.char.add("domain ", (trial.groups % DOMAINS).astype(str)),
        },
        trial.incumbent.argmax(1),
        trial.candidate.argmax(1),
        trial.labels,
        trial.groups,
        trial.weights,
        claims=np.arange(len(trial)),
    )
    return {each.name for some in found.values() for each in some if each.lost}


# --- Many attempts --------------------------------------------------------------------------------


def _tried_again(report: Report, trials: int) -> None:
    """Equals learnt anew from the same verdicts until one is better: how often is one?"""
    columns = [f"by attempt {k}" for k in (1, 3, 5, RETRAINED)]
    table = table_of(
        f"An equal retrained on {AT} verdicts has been “better” ({trials} trials)",
        ("what retrained ones have in common",),
        (*columns, f"by attempt {RETRAINED}, each at the full level"),
    )
    for alike in (0.0, 0.5):
        found = np.array([_found_better(alike, seed) for seed in range(trials)])
        spent, full = np.maximum.accumulate(found, axis=2).mean(axis=0)
        what = f"equals retrained {RETRAINED} times, {_percent(alike, 0)} in common"
        report.figures[what] = {"spent": spent.tolist(), "full": full.tolist()}
        report.claims.append(Claim(f"{what}: ever “better”", float(spent[-1]), high=0.05))
        at = (spent[0], spent[2], spent[4], spent[-1], full[-1])
        table.add_row(_percent(alike, 0), *(_percent(share) for share in at))
    report.tables.append(table)


def _found_better(alike: float, seed: int) -> np.ndarray:
    """(2, RETRAINED) whether each attempt was better: by the level left to it, by the full one."""
    better = np.zeros((2, RETRAINED), dtype=bool)
    for k, trial in enumerate(retrained(RETRAINED, np.random.default_rng(seed), alike=alike)):
        # What is no gain at all is not looked at, nor at a surer level what the full one denies.
        right = [each.argmax(1) == trial.labels for each in (trial.incumbent, trial.candidate)]
        better[1, k] = right[1].sum() > right[0].sum() and _gain(trial, attempt=1).low > 0
        better[0, k] = better[1, k] and _gain(trial, attempt=k + 1).low > 0
    return better


def _gain(trial: Trial, *, attempt: int) -> metrics.Difference:
    """That of `compare`, without its other figures."""
    before, after = trial.incumbent.argmax(1), trial.candidate.argmax(1)
    return metrics.paired_difference(
        (after == trial.labels).astype(float) - (before == trial.labels),
        trial.groups,
        trial.weights,
        level=metrics.spent_level(attempt),
    )


def _power_at_attempts(report: Report, populations: Sequence[Population], trials: int) -> None:
    gain = 0.10
    table = table_of(
        f"A true gain of {100 * gain:.0f} points: “better” / recommended ({trials} trials)",
        ("pair of models", "verdicts"),
        tuple(f"attempt {attempt}" for attempt in ATTEMPTS),
    )
    for population in populations:
        if not _apart(population, gain):
            table.add_row(population.name, _only(population))
            continue
        for rows in (AT, 2 * AT):
            drawn = [
                population.draw(rows, gain, np.random.default_rng([seed, rows]))
                for seed in range(trials)
            ]
            shares = {}
            for attempt in ATTEMPTS:
                said = [metrics.gate(compare(trial, attempt=attempt)) for trial in drawn]
                passed = sum(verdict in RECOMMENDED for verdict in said)
                shares[attempt] = said.count("better") / trials, passed / trials
            report.figures[f"{gain:+.2f} by attempt, {rows} verdicts: {population.name}"] = shares
            cells = (f"{_percent(a, 0)} / {_percent(b, 0)}" for a, b in shares.values())
            table.add_row(population.name, str(rows), *cells)
    report.tables.append(table)


# --- Power ----------------------------------------------------------------------------------------


def _power(report: Report, populations: Sequence[Population], trials: int) -> None:
    for gain in (0.05, 0.10):
        table = table_of(
            f"A true gain of {100 * gain:.0f} points: “better” / recommended ({trials} trials)",
            ("pair of models",),
            tuple(str(rows) for rows in VERDICTS),
        )
        for population in populations:
            if not _apart(population, gain):
                table.add_row(population.name, _only(population))
                continue
            curve = [rates(population.draw, rows, gain, trials) for rows in VERDICTS]
            report.figures[f"power at {gain:+.2f}: {population.name}"] = [
                asdict(at) for at in curve
            ]
            table.add_row(
                population.name,
                *(f"{_percent(at.better, 0)} / {_percent(at.recommended, 0)}" for at in curve),
            )
        report.tables.append(table)


def _alike(report: Report, trials: int) -> None:
    """Equal models on pages of one row each, where rows about one claim are won or lost together
    eight times in ten; and as if each row were of a claim of its own."""
    table = table_of(
        f"Equals, {AT} verdicts, several pages about one claim ({trials} trials)",
        ("pages about one claim",),
        ("“better”", "95 % interval covers", "“better”, claims ignored", "covers, claims ignored"),
    )
    for pages in (1, 3, 6):
        counted, ignored = (_about_claims(pages, trials, known=known) for known in (True, False))
        report.figures[f"{pages} pages about a claim"] = {"counted": counted, "ignored": ignored}
        what = f"{pages} pages about a claim"
        report.claims += [
            Claim(f"{what}: “better” of equals", counted[0], high=0.05),
            Claim(f"{what}: covered", counted[1], low=0.93),
        ]
        table.add_row(str(pages), *(_percent(share) for share in (*counted, *ignored)))
    report.tables.append(table)


def _about_claims(pages: int, trials: int, *, known: bool) -> tuple[float, float]:
    """Share of trials that are “better”, and whose interval holds 0."""
    claims, every = np.arange(AT) // pages, np.arange(AT)
    better = covered = 0
    for seed in range(trials):
        draw = np.random.default_rng(seed)
        alone, together = draw.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(2, AT))
        values = np.where(draw.random(AT) < 0.8, together[claims], alone)
        found = metrics.paired_difference(values, every, claims=claims if known else None)
        better += found.low > 0
        covered += found.low <= 0 <= found.high
    return better / trials, covered / trials


def _needed_pairs(report: Report, populations: Sequence[Population], trials: int) -> None:
    """Add to an inconclusive evaluation as many pairs as it asks for: how often does the next, the
    second attempt, settle it?"""
    effect = metrics.STATED_EFFECT
    table = table_of(
        f"“About N more” for a true gain of {100 * effect:.0f} points, after {PILOT} verdicts",
        ("pair of models",),
        ("inconclusive", "N: 10 %", "median", "90 %", "“better” with N more"),
    )
    for population in populations:
        if not _apart(population, effect):
            table.add_row(population.name, _only(population))
            continue
        asked, shown = [], 0
        for seed in range(trials):
            rng = np.random.default_rng(seed)
            pilot = population.draw(PILOT, effect, rng)
            found = compare(pilot)
            if metrics.gate(found) != "inconclusive":
                continue
            asked.append(metrics.needed_pairs(found, level=metrics.spent_level(2)))
            more = population.draw(asked[-1], effect, rng)
            shown += metrics.gate(compare(pilot.and_then(more), attempt=2)) == "better"
        power = shown / len(asked)
        low, median, high = np.percentile(asked, [10, 50, 90])
        report.figures[f"needed pairs: {population.name}"] = {
            "inconclusive": len(asked) / trials,
            "needed": [low, median, high],
            "power": power,
        }
        # The interval and the pages it needs; where pages are too few, pairs alone do not settle.
        if population.whole_pages:
            name = f"{population.name}: “better” with N more"
            report.claims.append(Claim(name, power, low=0.73, high=0.87))
        table.add_row(
            population.name,
            _percent(len(asked) / trials),
            *(f"{n:.0f}" for n in (low, median, high)),
            _percent(power),
        )
    report.tables.append(table)


# --- Confirmation ---------------------------------------------------------------------------------


def _confirmation(report: Report, populations: Sequence[Population], trials: int) -> None:
    """Bet on the gain and look after every page: how many verdicts until it is confirmed?"""
    table = table_of(
        f"Confirmed by the bet, looking after every page ({trials} trials)",
        ("pair of models", "true gain"),
        tuple(str(rows) for rows in VERDICTS),
    )
    for population in populations:
        for name, draw in designs(population):
            for gain in (0.0, 0.05, 0.10, population.gain):
                if not _apart(population, gain):
                    continue
                curve = _confirmed(draw, gain, trials)
                report.figures[f"confirmed at {gain:+.2f}: {name}"] = curve
                if gain == 0:
                    what = f"{name}: equals confirmed within {VERDICTS[-1]} verdicts"
                    report.claims.append(Claim(what, curve[-1], high=0.05))
                table.add_row(name, f"{100 * gain:+.1f}", *(_percent(at, 0) for at in curve))
    report.tables.append(table)


def _confirmed(draw: Draw, gain: float, trials: int) -> list[float]:
    """Share of trials confirmed by as many verdicts as VERDICTS says, page after page."""
    confirmed = np.zeros(len(VERDICTS))
    # What a shadow evaluation knows of the pages that both models were compared on.
    most = _most_disagreements(draw(AT, 0.0, np.random.default_rng(trials)))
    for seed in range(trials):
        trial = _page_by_page(draw(VERDICTS[-1], gain, np.random.default_rng(seed)))
        # The peak never falls, so what is confirmed early is confirmed at all later looks.
        confirmed += [_bet(trial.first(rows), most).confirmed for rows in VERDICTS]
    return (confirmed / trials).tolist()


def _gain_taken_back(report: Report, trials: int) -> None:
    """No gain in all: what the candidate gains where models disagree little it loses elsewhere.

    Rows come page by page or in random order, in which a page counts with about one row.
    """
    what = "a gain on short pages that long ones take back"
    slack = 2 * math.sqrt(0.05 * 0.95 / trials)
    for name, won_on_long, mixed in (
        (what, 0.4, False),
        (f"{what}, in mixed order", 0.4, True),
        (f"{what} and 6 points more", 0.35, False),
        (f"{what} and 6 points more, in mixed order", 0.35, True),
    ):
        share = taken_back(trials, won_on_long, mixed=mixed)
        report.figures[f"confirmed: {name}"] = share
        report.claims.append(Claim(f"{name} is confirmed", share, high=0.05 + slack))


def taken_back(trials: int, won_on_long: float, *, mixed: bool, pages: int = 400) -> float:
    """Share of trials that the bet confirms, of `pages` pages each.

    Four of five have one disagreement, won in 65 %; the fifth has six, won in `won_on_long`. The
    true gain per row is 0 at 0.4 and -0.06 at 0.35; a gain per page is to be had at both.
    """
    confirmed = 0
    for seed in range(trials):
        draw = np.random.default_rng(seed)
        sizes = np.where(draw.random(pages) < 0.8, 1, 6)
        page = np.repeat(np.arange(len(sizes)), sizes)
        won = draw.random(len(page)) < np.where(sizes == 1, 0.65, won_on_long)[page]
        if mixed:
            order = draw.permutation(len(page))
            page, won = page[order], won[order]
        ones = np.ones(len(page))
        confirmed += bet_on_gain(~won, won, ones > 0, page, ones, most=6).confirmed
    return confirmed / trials


def _page_by_page(trial: Trial) -> Trial:
    order = np.argsort(trial.groups, kind="stable")
    return Trial(*(part[order] for part in vars(trial).values()))


def _most_disagreements(trial: Trial) -> int:
    differ = trial.incumbent.argmax(1) != trial.candidate.argmax(1)
    return max(1, int(np.bincount(trial.groups[differ]).max(initial=0)))


def _bet(trial: Trial, most: int) -> Any:
    before, after = trial.incumbent.argmax(1), trial.candidate.argmax(1)
    return bet_on_gain(
        before == trial.labels,
        after == trial.labels,
        before != after,
        trial.groups,
        trial.weights,
        most=most,
    )


# --- Guard ----------------------------------------------------------------------------------------


def _guard_power(report: Report) -> None:
    """How often the guard set blocks a loss of 5 points, and no loss at all."""
    table = table_of(
        f"Guard set of {len(guard.load())} pairs, by share of answers gained or lost",
        ("",),
        tuple(_percent(share, 0) for share in FLIPPED),
    )
    figures: dict[str, list[float]] = {}
    for name, loss, alike in (
        ("5 points worse: blocked", 0.05, False),
        ("equal: blocked", 0.0, False),
        ("equal, pairs of one hypothesis alike: blocked", 0.0, True),
    ):
        figures[name] = [guard_blocks(share, loss, alike=alike) for share in FLIPPED]
        table.add_row(name, *(_percent(p) for p in figures[name]))
    report.figures["guard: blocked"] = {"flipped": FLIPPED, **figures}
    for name, blocked in figures.items():
        if name.startswith("equal"):
            # Of so many sets the share is known to this much, two standard errors.
            slack = 2 * math.sqrt(0.05 * 0.95 / GUARD_SETS)
            report.claims.append(Claim(f"guard: {name}", max(blocked), high=0.05 + slack))
    report.claims.append(
        Claim("guard: -5 points blocked, 15 % flipped", guard_blocks(0.15, 0.05), low=0.9)
    )
    report.tables.append(table)


def guard_blocks(flipped: float, loss: float, *, alike: bool = False) -> float:
    """Share of GUARD_SETS simulated guard sets that block, where the share `flipped` of answers is
    gained or lost and `loss` more lost than gained; `alike`: pairs of a hypothesis all change
    alike."""
    groups = guard.load().groups
    flipped = max(flipped, loss)
    chances = [(flipped + loss) / 2, 1 - flipped, (flipped - loss) / 2]
    draw = np.random.default_rng(0)
    units = groups if alike else np.arange(len(groups))
    changes = draw.choice([-1, 0, 1], p=chances, size=(GUARD_SETS, units.max() + 1))[:, units]
    return float(np.mean([metrics.guard_fails(metrics.loss_p(row, groups)) for row in changes]))


def _guard_of_real_pairs(report: Report, found: Sequence[RealPair]) -> None:
    table = table_of(
        "Base against adapter on general pairs",
        ("adapter to",),
        ("accuracy", "gained or lost", "−5 points blocked", "answers changed", "loss at most"),
    )
    for pair in found:
        name, on_guard = pair.stream.name, pair.on_guard
        bound = hajek.share(pair.changed, np.ones(len(pair.changed)), guard.unlabelled().groups)
        power = guard_blocks(on_guard.discordance, 0.05)
        report.figures[f"guard: {name}"] = {
            "gain": on_guard.gain,
            "flipped": on_guard.discordance,
            "power": power,
            "changed": bound.estimate,
            "loss_at_most": bound.high,
        }
        report.claims.append(Claim(f"guard after {name}: -5 points blocked", power, low=0.9))
        table.add_row(
            name,
            f"{100 * on_guard.gain:+.1f}",
            *(_percent(x) for x in (on_guard.discordance, power, bound.estimate, bound.high)),
        )
    report.tables.append(table)


# --- Telling --------------------------------------------------------------------------------------


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


if __name__ == "__main__":
    sys.exit(main())
