"""Pairs of models whose true difference is known, and trials drawn from them.

A population holds two models' answers to every row of a stream. Its pages are drawn with
replacement, so the population itself is the truth of what is drawn. Imports no Django.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from adapters_app.nli import anchors, guard
from adapters_app.nli.base_model import Base, load_base
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.data import Example
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import Anchors, train
from benchmarks.rows import Row, read, texts
from corrections.labels import Label

# Chance of an audit where the two models disagree, and elsewhere.
ASKED_WHERE_THEY_DIFFER, ASKED_ELSEWHERE = 0.9, 0.3
# Pages of a stream are judged whole where they are at most this long on average; in streams of few
# long pages a user would never get to a second one, and rows come in random order.
READABLE_PAGE = 8
SYNTHETIC_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class Trial:
    """What a shadow evaluation gets: n rows, probabilities (n, 3) of incumbent and candidate."""

    incumbent: np.ndarray
    candidate: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, rows: int) -> "Trial":
        """The first `rows` of it."""
        return Trial(*(getattr(self, field.name)[:rows] for field in fields(self)))

    def and_then(self, other: "Trial") -> "Trial":
        """The rows of both; pages of one are none of the other's."""
        apart = Trial(
            other.incumbent,
            other.candidate,
            other.labels,
            other.groups + self.groups.max() + 1,
            other.weights,
        )
        return Trial(
            *(
                np.concatenate([getattr(self, field.name), getattr(apart, field.name)])
                for field in fields(self)
            )
        )


@dataclass(frozen=True, eq=False)
class Population:
    """Probabilities (n, 3) of models `a` and `b`, labels and pages (n,) of all rows of a stream."""

    name: str
    a: np.ndarray
    b: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    whole_pages: bool = True  # judged page by page; else rows in random order

    @cached_property
    def gain(self) -> float:
        """How much more often `b` is right than `a`, over all rows."""
        right_a, right_b = (p.argmax(1) == self.labels for p in (self.a, self.b))
        return float(right_b.mean() - right_a.mean())

    @cached_property
    def discordance(self) -> float:
        """Share of rows that just one of the two has right."""
        right_a, right_b = (p.argmax(1) == self.labels for p in (self.a, self.b))
        return float((right_a != right_b).mean())

    def draw(
        self, rows: int, gain: float, rng: np.random.Generator, *, weighted: bool = False
    ) -> Trial:
        """About `rows` verdicts on a candidate whose true gain over the incumbent is `gain`.

        On each page `a` and `b` change roles with such a probability that the expected gain is the
        one asked for: discordance and likeness of a page's rows stay the real ones, and 0 is the
        null hypothesis itself. Weighted: rows are drawn with known probabilities.

        Raises:
            ValueError: the two models differ by less than `gain`.
        """
        if abs(gain) > abs(self.gain):
            raise ValueError(f"{self.name}: the models differ by {self.gain:+.3f}, not {gain:+.3f}")
        chance = self._chances if weighted else np.ones(len(self.labels))
        at, page = self._rows(int(np.ceil(rows / chance.mean())), rng)
        swapped = rng.random(page.max() + 1)[page] < (1 - gain / self.gain) / 2
        asked = rng.random(len(at)) < chance[at]
        at, page, swapped = at[asked], page[asked], swapped[asked][:, None]
        return Trial(
            incumbent=np.where(swapped, self.b[at], self.a[at]),
            candidate=np.where(swapped, self.a[at], self.b[at]),
            labels=self.labels[at],
            groups=page,
            weights=1 / chance[at],
        )

    @cached_property
    def _chances(self) -> np.ndarray:
        differ = self.a.argmax(1) != self.b.argmax(1)
        return np.where(differ, ASKED_WHERE_THEY_DIFFER, ASKED_ELSEWHERE)

    @cached_property
    def _pages(self) -> list[np.ndarray]:
        """Positions of the rows of each page."""
        order = np.argsort(self.groups, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1)

    def _rows(self, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions (rows,) in the population and the number of the drawn page each is of."""
        pages = self._pages
        mean = len(self.labels) / len(pages)
        # Twice as many as are needed: in random order from all, or else page by page.
        wanted = max(int(2 * rows / mean) + 2, 0 if self.whole_pages else len(pages))
        drawn = [pages[i] for i in rng.integers(len(pages), size=wanted)]
        at = np.concatenate(drawn)
        page = np.repeat(np.arange(len(drawn)), [len(rows_of) for rows_of in drawn])
        if self.whole_pages:
            return at[:rows], page[:rows]
        kept = rng.permutation(len(at))[:rows]
        return at[kept], page[kept]


@dataclass(frozen=True, eq=False)
class RealPair:
    """Base and adapter on a stream, on the guard set, and on the unlabelled pairs of its texts."""

    stream: Population
    on_guard: Population
    changed: np.ndarray  # (pairs,) whether the adapter answers guard.unlabelled() otherwise


# --- Synthetic ------------------------------------------------------------------------------------


def even_pages() -> Population:
    """Five rows on every page."""
    return synthetic("even pages", np.full(SYNTHETIC_ROWS // 5, 5))


def uneven_pages() -> Population:
    """One to a few dozen rows on a page, most of them on few: log-normal, as documents are."""
    drawn = np.random.default_rng(1).lognormal(np.log(3), 0.8, SYNTHETIC_ROWS // 4)
    return synthetic("uneven pages", np.clip(drawn.round(), 1, 40).astype(int))


def pages_of(rows: int) -> Population:
    """All pages of one length."""
    return synthetic(f"pages of {rows}", np.full(max(SYNTHETIC_ROWS // rows, 60), rows))


def synthetic(name: str, sizes: np.ndarray, *, seed: int = 0) -> Population:
    """Two models of accuracy about .45 and .60 that differ on a third of the rows.

    Each model's logits are noise plus a margin on the right label: one part of margin and noise is
    shared by both models (a hard row is hard for both), one by the rows of a page, one is its own.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n = len(groups)
    labels = rng.integers(0, len(Label), n)
    page = rng.normal(0, 0.5, len(sizes))[groups]
    shared = rng.normal(0, 1, (n, len(Label)))
    answers = []
    for margin in (0.4, 1.0):
        logits = shared + rng.normal(0, 0.6, (n, len(Label)))
        own = rng.normal(0, 0.4, len(sizes))[groups]
        logits[np.arange(n), labels] += margin + page + own
        answers.append(softmax(logits, axis=1))
    return Population(name, answers[0], answers[1], labels, groups)


def retrained(
    candidates: int, rng: np.random.Generator, *, alike: float, pages: int = 60
) -> list[Trial]:
    """An incumbent and so many candidates, all equally good, on the same pages of five rows.

    Answers as those of `synthetic`. Of what a candidate has for itself there, in variance, all
    candidates have the share `alike` in common: each learnt anew from the same verdicts.
    """
    groups = np.repeat(np.arange(pages), 5)
    n = len(groups)
    labels = rng.integers(0, len(Label), n)
    page = rng.normal(0, 0.5, pages)[groups]
    shared = rng.normal(0, 1, (n, len(Label)))

    def own() -> np.ndarray:
        noise = rng.normal(0, 0.6, (n, len(Label)))
        noise[np.arange(n), labels] += rng.normal(0, 0.4, pages)[groups]
        return noise

    def answers(noise: np.ndarray) -> np.ndarray:
        logits = shared + noise
        logits[np.arange(n), labels] += 0.7 + page
        probabilities: np.ndarray = softmax(logits, axis=1)
        return probabilities

    incumbent, common = answers(own()), own()
    learnt = (np.sqrt(alike) * common + np.sqrt(1 - alike) * own() for _ in range(candidates))
    return [Trial(incumbent, answers(each), labels, groups, np.ones(n)) for each in learnt]


# --- Real -----------------------------------------------------------------------------------------


def real(
    data: Path, cache: Path, *, streams: Collection[str] | None, verdicts: int
) -> list[RealPair]:
    """The base and an adapter on every stream of `data`, or on those named.

    Each half of a stream's pages is answered by an adapter trained on `verdicts` about the other
    half, as fold-blind siblings do it. Answers are kept in `cache`, by the base's fingerprint.
    """
    base = load_base("minilm-nli")
    cache.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted((data / "stream").glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        if streams and name not in streams:
            continue
        kept = cache / f"gate-{name}-{verdicts}-{base.fingerprint[:12]}.npz"
        if not kept.exists():
            arrays: dict[str, Any] = _answers(base, read([path]), verdicts)
            np.savez_compressed(kept, **arrays)
        with np.load(kept) as stored:
            found.append(_pair_of(name, {key: stored[key] for key in stored.files}))
    return found


def _pair_of(name: str, arrays: dict[str, np.ndarray]) -> RealPair:
    groups, guard_set = arrays["groups"], guard.load()
    mean = len(groups) / len(np.unique(groups))
    stream = Population(
        name,
        arrays["a"],
        arrays["b"],
        arrays["labels"],
        groups,
        whole_pages=mean <= READABLE_PAGE,
    )
    every = np.arange(len(guard_set))
    on_guard = Population(name, arrays["guard_a"], arrays["guard_b"], guard_set.labels, every)
    return RealPair(stream, on_guard, arrays["changed"])


def _answers(base: Base, rows: Sequence[Row], verdicts: int) -> dict[str, np.ndarray]:
    """Probabilities of base and adapters on the rows of a stream and on the guard set's texts."""
    names = sorted({row["group"] for row in rows})
    number = {name: i for i, name in enumerate(np.random.default_rng(0).permutation(names))}
    groups = np.array([number[row["group"]] for row in rows])
    labels = np.array([Label(row["label"]).column for row in rows])
    a, b = Predictor(base).logits([_pair(row) for row in rows]), np.zeros((len(rows), 3))
    kept = np.zeros(len(rows), dtype=bool)
    # Halves of about as many rows: pages in random order, cut in the middle of the rows.
    half = groups > np.sort(groups)[len(groups) // 2]
    held_to = Anchors.answered_by(base, anchors.load())
    for side in (False, True):
        pool = np.random.default_rng(1).permutation(np.flatnonzero(half == side)).tolist()
        seen = [rows[i] for i in pool[:verdicts]]
        examples = [Example(*_pair(row), Label(row["label"])) for row in seen]
        config = TrainConfig()
        fitted = train(base, examples, config, anchors=held_to, evaluate_each_epoch=False)
        adapted = Predictor(base, fitted.epochs[-1].artifact)
        known = texts(seen)
        fresh = [
            i for i in np.flatnonzero(half != side).tolist() if known.isdisjoint(_pair(rows[i]))
        ]
        b[fresh], kept[fresh] = adapted.logits([_pair(rows[i]) for i in fresh]), True
    general = guard.unlabelled().pairs
    general_a, general_b = (
        softmax(each.logits(general), axis=1) for each in (Predictor(base), adapted)
    )
    labelled = len(guard.load())
    return {
        "a": softmax(a[kept], axis=1),
        "b": softmax(b[kept], axis=1),
        "labels": labels[kept],
        "groups": groups[kept],
        "guard_a": general_a[:labelled],
        "guard_b": general_b[:labelled],
        "changed": general_a.argmax(1) != general_b.argmax(1),
    }


def _pair(row: Row) -> tuple[str, str]:
    return row["premise"], row["hypothesis"]
