"""The decision rules in seeded simulations: how often they are wrong, and how often they see."""

import itertools

import numpy as np
import pytest

from adapters_app.nli import guard, hajek, metrics
from adapters_app.nli.betting import bet_on_gain, first_runs, wealth


def differences(
    rng: np.random.Generator, sizes: np.ndarray, gain: float, *, discordant: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) -1, 0 or 1 per row and its page: pages differ in how much B gains on them."""
    pages = np.repeat(np.arange(len(sizes)), sizes)
    page_gain = gain + rng.choice([-0.1, 0.1], len(sizes))[pages]
    draw = rng.random(len(pages))
    won, lost = (discordant + page_gain) / 2, (discordant - page_gain) / 2
    return np.where(draw < won, 1.0, np.where(draw < won + lost, -1.0, 0.0)), pages


@pytest.mark.parametrize("pages_of_a_claim", [3, 6])
def test_pages_about_one_claim_do_not_pass_for_many(pages_of_a_claim: int) -> None:
    """Equal models, a row on each page; eight in ten rows of a claim are won or lost together."""
    trials, covered, better = 250, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        claims = np.arange(300) // pages_of_a_claim
        alone, together = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(2, 300))
        values = np.where(rng.random(300) < 0.8, together[claims], alone)
        found = compared(values, np.arange(300), claims=claims)
        covered += found.accuracy.low <= 0 <= found.accuracy.high
        better += metrics.gate(found) == "better"
    assert covered / trials >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / trials)
    assert better / trials <= 0.05


def test_claims_of_one_page_each_change_nothing() -> None:
    values, pages = differences(np.random.default_rng(0), UNEVEN, 0.05)
    claims = np.arange(len(values)) // 2 * 1000 + pages
    assert compared(values, pages, claims=claims).accuracy == compared(values, pages).accuracy


def compared(
    values: np.ndarray,
    pages: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    claims: np.ndarray | None = None,
    level: float = metrics.WRONGLY_BETTER,
) -> metrics.Comparison:
    """Two models whose answers differ by `values`, compared as a shadow evaluation does it."""
    labels = np.arange(len(values)) % 3
    answers = [np.where(values == lost, (labels + 1) % 3, labels) for lost in (1.0, -1.0)]
    sure = [np.eye(3)[given] * 0.7 + 0.1 for given in answers]
    return metrics.compare(*sure, labels, pages, weights, claims=claims, level=level)


EVEN = np.full(60, 5)
UNEVEN = np.array([40, 30, 25, 20, 20, 15, 15] + [8] * 20 + [4] * 30)
GIANT = np.array([300] + [9] * 34)


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, GIANT], ids=["even", "uneven", "one giant page"])
def test_the_interval_covers_a_known_gain(sizes: np.ndarray) -> None:
    trials, covered = 250, 0
    for seed in range(trials):
        values, pages = differences(np.random.default_rng(seed), sizes, 0.05)
        found = metrics.paired_difference(values, pages, seed=seed)
        covered += found.low <= 0.05 <= found.high
    assert covered / trials >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / trials)


def test_equals_are_seldom_called_better_and_the_worse_seldom_recommended() -> None:
    better = recommended = 0
    trials = 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        better += metrics.gate(compared(*differences(rng, UNEVEN, 0.0))) == "better"
        worse = compared(*differences(rng, UNEVEN, -0.05))
        recommended += metrics.gate(worse) in {"better", "not_worse"}
    assert max(better, recommended) / trials <= 0.05


def test_one_giant_page_decides_nothing() -> None:
    values, pages = differences(np.random.default_rng(0), GIANT, 0.15)
    assert metrics.gate(compared(values, pages)) == "inconclusive"


def test_weights_count_in_the_effective_number_of_pages() -> None:
    pages = np.repeat(np.arange(10), 5)
    heavy = np.where(pages == 0, 45.0, 1.0)
    assert hajek.effective_groups(pages) == pytest.approx(10)
    # One page with 225 of 270: (270)² / (225² + 9 · 5²)
    assert hajek.effective_groups(pages, heavy) == pytest.approx(270**2 / (225**2 + 225))


def test_rows_drawn_with_known_chances_give_the_gain_of_all_rows() -> None:
    """Disagreements drawn three times as often: the plain mean is twice the gain, ours is not."""
    rng = np.random.default_rng(3)
    values, pages = differences(rng, np.full(4000, 5), 0.05)
    chance = np.where(values == 0, 0.2, 0.6)
    drawn = rng.random(len(values)) < chance
    found = compared(values[drawn], pages[drawn], 1 / chance[drawn]).accuracy
    assert found.low <= 0.05 <= found.high
    assert metrics.paired_difference(values[drawn], pages[drawn]).low > 0.05


def test_two_rows_of_any_weight_are_uncertain() -> None:
    weights = np.where(np.arange(80) < 40, 2.0, 20.0)
    floor = np.sqrt(2) * (40 * 4 + 40 * 400) / 880**2
    alike = compared(np.zeros(80), np.arange(80), weights).accuracy
    assert alike.standard_error == pytest.approx(floor)
    # Of the heavy rows, none of which differs here, two may differ elsewhere.
    light = np.where(np.arange(80) < 4, 1.0, 0.0)
    found = compared(light, np.arange(80), weights).accuracy
    assert found.standard_error == pytest.approx(floor)


def test_lots_drawn_for_another_candidate_make_no_equal_better() -> None:
    """On the fifth that was drawn often 70 % differ, with a gain; of the others 4 % do, are hardly
    ever drawn, and take the whole gain back."""
    better = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        often = rng.random(30_000) < 0.2
        differs = rng.random(30_000) < np.where(often, 0.7, 0.04)
        gained = rng.random(30_000) < np.where(often, (1 + 0.04 * 0.8 / (0.7 * 0.2)) / 2, 0)
        values = np.where(differs, np.where(gained, 1.0, -1.0), 0.0)
        chance = np.where(often, 0.51, 0.02)
        drawn = np.flatnonzero(rng.random(30_000) < chance)[:300]
        better += metrics.gate(compared(values[drawn], drawn, 1 / chance[drawn])) == "better"
    assert better <= 0.05 * 200


@pytest.mark.parametrize("attempt", [1, 4])
def test_so_many_more_pairs_show_the_stated_gain_four_times_in_five(attempt: int) -> None:
    """Added to the inconclusive pairs at hand; 80 %, give or take 7 and the error of the trials."""
    shown, level = [], metrics.spent_level(attempt)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values, pages = differences(rng, np.full(45, 4), metrics.STATED_EFFECT)
        pilot = compared(values, pages)
        if metrics.gate(pilot) != "inconclusive":
            continue
        more = metrics.needed_pairs(pilot, level=level)
        news, new_pages = differences(rng, np.full(-(-more // 4), 4), metrics.STATED_EFFECT)
        both = metrics.paired_difference(
            np.concatenate([values, news[:more]]),
            np.concatenate([pages, new_pages[:more] + len(values)]),
            level=level,
        )
        shown.append(both.low > 0)
    assert len(shown) >= 150
    assert np.mean(shown) == pytest.approx(0.8, abs=0.07 + 2 * np.sqrt(0.16 / len(shown)))


def test_the_more_is_tried_the_less_error_is_left_and_never_more_than_5_percent() -> None:
    levels = [metrics.spent_level(attempt) for attempt in range(1, 10_001)]
    assert levels[:4] == pytest.approx([0.025, 0.0125, 0.025 / 6, 0.025 / 12])
    assert all(later < level for level, later in itertools.pairwise(levels))
    assert 0.0499 < sum(levels) <= 0.05


def on_pages_of_one_row(
    gained: int, lost: int, rows: int, *, attempt: int = 1
) -> metrics.Comparison:
    values = np.repeat([1.0, -1.0, 0.0], [gained, lost, rows - gained - lost])
    return compared(values, np.arange(rows), level=metrics.spent_level(attempt))


@pytest.mark.parametrize(
    ("gained", "lost", "rows", "first", "fifth"),
    [(30, 14, 240, "better", "not_worse"), (12, 12, 600, "not_worse", "inconclusive")],
)
def test_what_passes_at_first_is_not_sure_enough_for_a_fifth_attempt(
    gained: int, lost: int, rows: int, first: str, fifth: str
) -> None:
    assert metrics.gate(on_pages_of_one_row(gained, lost, rows)) == first
    assert metrics.gate(on_pages_of_one_row(gained, lost, rows, attempt=5)) == fifth


def test_a_loss_is_as_easy_to_see_at_any_attempt() -> None:
    first, fifth = (on_pages_of_one_row(14, 30, 240, attempt=k) for k in (1, 5))
    assert first.accuracy.confidence == 0.95
    assert fifth.accuracy.confidence == pytest.approx(0.9975)
    assert fifth.accuracy.low < first.accuracy.low < first.accuracy.high < 0 < fifth.accuracy.high
    assert fifth.accuracy.high_95 == first.accuracy.high_95 == first.accuracy.high
    assert (fifth.accuracy.p_gain, fifth.accuracy.p_loss) == (
        first.accuracy.p_gain,
        first.accuracy.p_loss,
    )
    assert fifth.brier == first.brier
    assert metrics.gate(fifth) == metrics.gate(first) == "worse"


@pytest.mark.parametrize("attempt", [10, 20])
def test_the_ends_of_a_sure_interval_are_not_read_from_a_handful_of_draws(attempt: int) -> None:
    """Skewed deviations: the first 2,000 of them end before one in 15,000 lies beyond."""
    values, pages = differences(np.random.default_rng(0), UNEVEN, 0.05)
    totals = np.bincount(pages, values), np.bincount(pages).astype(float)
    many = metrics._studentised(*totals, floor=0.001, seed=1, draws=400_000)
    level = metrics.spent_level(attempt)
    found = metrics.paired_difference(values, pages, level=level)
    beyond = (found.estimate - found.low) / found.standard_error
    assert beyond == pytest.approx(np.quantile(many, 1 - level), rel=0.04)
    assert beyond > 1.04 * np.quantile(many[:2000], 1 - level)


@pytest.mark.parametrize("alike", [False, True], ids=["apart", "alike"])
def test_the_guard_set_notices_a_loss_of_5_points_and_blocks_few_equals(alike: bool) -> None:
    """With 15 % of the answers flipped; pairs of one hypothesis may all flip alike."""
    groups = guard.load().groups
    rng = np.random.default_rng(1)

    def blocked(gained: float, lost: float) -> float:
        units = groups if alike else np.arange(len(groups))
        shares = [lost, 1 - lost - gained, gained]
        drawn = rng.choice([-1, 0, 1], p=shares, size=(500, units.max() + 1))[:, units]
        return float(np.mean([metrics.guard_fails(metrics.loss_p(row, groups)) for row in drawn]))

    assert blocked(0.05, 0.10) >= (0.5 if alike else 0.88)
    assert blocked(0.075, 0.075) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


# --- Confirmation ---------------------------------------------------------------------------------


def bet(
    values: np.ndarray,
    pages: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    claims: np.ndarray | None = None,
    most: int = 1,
):
    return bet_on_gain(
        values < 0,
        values > 0,
        values != 0,
        pages,
        np.ones(len(values)) if weights is None else weights,
        claims=claims,
        most=most,
    )


def taken_back(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gains (n,) and pages (n,), page by page: four of five pages have one disagreement, which B
    wins in 65 %; the fifth has six, 40 %. No gain in all."""
    sizes = np.where(rng.random(300) < 0.8, 1, 6)
    pages = np.repeat(np.arange(len(sizes)), sizes)
    won = rng.random(len(pages)) < np.where(sizes == 1, 0.65, 0.4)[pages]
    return np.where(won, 1.0, -1.0), pages


def test_a_page_counts_until_another_one_is_judged_and_the_last_one_waits() -> None:
    counted, page = first_runs(np.array([5, 5, 2, 5, 2, 7, 9, 9]))
    assert counted.tolist() == [0, 1, 2, 5]
    assert page.tolist() == [0, 0, 1, 2]
    assert len(first_runs(np.array([4, 4]))[0]) == len(first_runs(np.array([], dtype=int))[0]) == 0


def test_wealth_of_a_few_pages_by_hand() -> None:
    """Weights 2: stakes ½ … 1/32 of a row's weight; on two disagreements no more than ¼ of each."""
    path = wealth(
        totals=np.array([2.0, -4.0]), disagreements=np.array([1, 2]), heaviest=np.array([2.0, 2.0])
    )
    stakes = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])
    after_gain = 1 + stakes
    after_loss = after_gain * (1 - 2 * np.minimum(stakes, 1 / 4))
    assert path == pytest.approx([after_gain.mean(), after_loss.mean()])


@pytest.mark.parametrize("weighted", [False, True])
def test_looking_after_every_page_confirms_equals_in_a_twentieth_at_most(weighted: bool) -> None:
    confirmed = {0.0: 0, 0.15: 0}
    for gain in confirmed:
        for seed in range(300):
            rng = np.random.default_rng(seed)
            values, pages = differences(rng, 1 + rng.poisson(2, 150), gain)
            chance = np.where(values == 0, 0.3, 0.9) if weighted else np.ones(len(values))
            drawn = rng.random(len(values)) < chance
            confirmed[gain] += bet(values[drawn], pages[drawn], 1 / chance[drawn]).confirmed
    assert confirmed[0.0] / 300 <= 0.05
    assert confirmed[0.15] / 300 >= 0.8


@pytest.mark.parametrize("mixed", [False, True], ids=["page by page", "in mixed order"])
def test_a_gain_on_short_pages_that_long_ones_take_back_is_not_confirmed(mixed: bool) -> None:
    confirmed = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values, pages = taken_back(rng)
        order = rng.permutation(len(pages)) if mixed else np.arange(len(pages))
        confirmed += bet(values[order], pages[order], most=6).confirmed
    assert confirmed / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_verdicts_in_mixed_order_confirm_nothing() -> None:
    """A gain on all rows that a page each of the same rows would show at once."""
    pages = np.repeat(np.arange(100), 4)
    order = np.random.default_rng(0).permutation(400)
    whole, mixed = bet(np.ones(400), pages, most=4), bet(np.ones(400), pages[order], most=4)
    assert (whole.confirmed, whole.dropped, whole.pages, whole.rows) == (True, 0, 99, 396)
    assert not mixed.confirmed
    assert mixed.dropped > 0.5
    # It stands where it stood when a twentieth had been dropped.
    assert 1 <= mixed.wealth <= mixed.peak < 20


def test_the_last_page_waits_and_is_not_dropped() -> None:
    values = np.ones(6)
    assert bet(values, np.array([1, 2, 2, 3, 3, 3])).dropped == 0
    # Two rows of page 1 come late, the second of them in the end; page 3 does count.
    late = bet(values, np.array([1, 2, 1, 3, 3, 1]))
    assert (late.rows, late.dropped) == (4, pytest.approx(2 / 6))
    # By weight, and of the rows that the models answer differently.
    weighted = bet(
        np.array([1, 0, 1.0, 1, 1]), np.array([1, 2, 1, 2, 3]), np.array([2, 9, 1, 4, 9])
    )
    assert weighted.dropped == pytest.approx(5 / 7)


def test_a_claim_counts_on_its_first_page_and_is_dropped_on_others() -> None:
    pages, claims = np.array([1, 1, 2, 2, 3]), np.array(["a", "b", "a", "c", "d"])
    found = bet(np.ones(5), pages, claims=claims)
    assert (found.rows, found.pages, found.dropped) == (3, 2, pytest.approx(1 / 4))
    own = bet(np.ones(5), pages, claims=np.arange(5))
    assert own == bet(np.ones(5), pages)
    assert own.dropped == 0


def test_a_twentieth_may_be_dropped() -> None:
    """Twenty pages of one disagreement, of which one comes a second time, at the very end."""
    for pages in (20, 18):
        found = bet(np.ones(pages + 2), np.array([*range(pages), 0, pages]))
        assert found.confirmed
        assert found.dropped == pytest.approx(1 / (pages + 1))
    late = bet(np.ones(9), np.array([0, 1, 0, 2, 3, 4, 5, 6, 7]))
    assert not late.confirmed
    after = bet(np.ones(28), np.array([0, 1, 0, *range(2, 27)]))
    assert after.confirmed
    assert after.dropped <= 0.05


def test_a_confirmation_before_rows_were_mixed_stays() -> None:
    mixed = np.tile(np.arange(50, 54), 50)
    for first, gain in ((12, 1.0), (12, -1.0), (5, 1.0)):
        values = np.concatenate([np.ones(first), np.full(len(mixed), gain)])
        found = bet(values, np.concatenate([np.arange(first), mixed]))
        assert found.dropped > 0.9
        assert found.confirmed is (first == 12)


def test_what_was_confirmed_stays_confirmed() -> None:
    won, lost = np.ones(12), -np.ones(40)
    found = bet(np.concatenate([won, lost]), np.arange(52))
    assert found.confirmed
    assert found.wealth < 1 < 20 <= found.peak
    assert found.pages == 51


# --- Unlabelled pairs -----------------------------------------------------------------------------


def test_unlabelled_pairs_are_new_arrangements_of_the_guard_set() -> None:
    made, labelled = guard.unlabelled(), guard.load()
    assert len(made) >= 3000
    assert len(set(made.pairs)) == len(made) == len(made.groups)
    assert made.pairs[: len(labelled)] == labelled.pairs
    texts = {text for pair in labelled.pairs for text in pair}
    assert texts == {text for pair in made.pairs for text in pair}
    # Pairs that share texts share a group, but for the hypothesis each group borrows.
    assert len(np.unique(made.groups)) == len({pair[1] for pair in labelled.pairs})
