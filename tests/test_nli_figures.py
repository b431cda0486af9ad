"""Calibrators, figures and the gate, against known answers and scikit-learn."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from adapters_app.nli import calibration, metrics
from adapters_app.nli.config import PRESETS, TrainConfig

RNG = np.random.default_rng(7)


def drawn(n: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose right temperature is known, and labels drawn from them."""
    true = RNG.normal(0, 1.5, (n, 3))
    p = calibration.Identity().predict_proba(true)
    labels = (p.cumsum(1) > RNG.random((n, 1))).argmax(1)
    return true * temperature, labels


def test_temperature_is_recovered() -> None:
    logits, labels = drawn(20_000, temperature=2.5)
    fitted = calibration.TemperatureScaling().fit(logits, labels)
    assert fitted.temperature_ == pytest.approx(2.5, rel=0.05)


class Answers(ClassifierMixin, BaseEstimator):
    """A model whose logits are its input, for scikit-learn to calibrate."""

    classes_ = np.arange(3)

    def fit(self, logits: np.ndarray, labels: np.ndarray) -> "Answers":
        return self

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(calibration.TemperatureScaling, "temperature"), (calibration.PlattScaling, "sigmoid")],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.filterwarnings("ignore:Since FrozenEstimator")  # it has nothing to fit
def test_calibrators_equal_scikit_learns(ours: type, theirs: str, weighted: bool) -> None:
    logits, labels = drawn(800, temperature=2.0)
    weights = RNG.uniform(0.5, 4, 800) if weighted else None
    # Platt's targets count rows: weights that sum to n count as many.
    weights = weights * 800 / weights.sum() if weights is not None else None
    wrapped = CalibratedClassifierCV(FrozenEstimator(Answers()), method=theirs, ensemble=False)
    reference = wrapped.fit(logits, labels, sample_weight=weights).predict_proba(logits)
    fitted = ours().fit(logits, labels, weights)
    np.testing.assert_allclose(fitted.predict_proba(logits), reference, atol=1e-6)


def test_bias_corrected_temperature_is_recovered() -> None:
    true, labels = drawn(20_000)
    shift = np.array([0.8, -0.5, -0.3])
    fitted = calibration.BiasCorrectedTemperature().fit((true - shift) * 2.5, labels)
    assert fitted.temperature_ == pytest.approx(2.5, rel=0.05)
    # softmax(z / T + b) = softmax(true): b is the shift that the logits lack.
    assert fitted.offsets_ == pytest.approx(shift, abs=0.06)
    assert sum(fitted.offsets_) == pytest.approx(0, abs=1e-12)


def test_bias_correction_meets_the_label_mix() -> None:
    """The likelihood's own condition: on the rows fitted, each label's mean is its share."""
    logits, labels = drawn(400)
    weights = RNG.uniform(0.5, 4, 400)
    fitted = calibration.BiasCorrectedTemperature().fit(logits * 3 + [1, 0, 0], labels, weights)
    means = np.average(fitted.predict_proba(logits * 3 + [1, 0, 0]), axis=0, weights=weights)
    shares = np.bincount(labels, weights) / weights.sum()
    np.testing.assert_allclose(means, shares, atol=1e-6)


def test_weights_count_like_copies() -> None:
    logits, labels = drawn(300)
    weights = RNG.integers(1, 4, 300).astype(float)
    copied = np.repeat(np.arange(300), weights.astype(int))
    weighted = calibration.TemperatureScaling().fit(logits, labels, weights)
    repeated = calibration.TemperatureScaling().fit(logits[copied], labels[copied])
    assert weighted.temperature_ == pytest.approx(repeated.temperature_, rel=1e-5)


def test_choice_prefers_the_simplest_that_is_as_good() -> None:
    logits, labels = drawn(600, temperature=1.0)
    assert calibration.choose(logits, labels).calibrator.method == "none"
    logits, labels = drawn(600, temperature=4.0)
    assert calibration.choose(logits, labels).calibrator.method == "temperature"
    shifted = logits + np.array([6.0, 0.0, 0.0])
    assert calibration.choose(shifted, labels).calibrator.method == "bcts"


def test_too_few_rows_are_left_uncalibrated() -> None:
    logits, labels = drawn(calibration.MIN_ROWS - 1, temperature=5.0)
    assert calibration.choose(logits, labels).calibrator.method == "none"


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        (29, {"temperature": "30", "bcts": "90", "platt": "180"}),
        (89, {"bcts": "90", "platt": "180"}),
        (179, {"platt": "180"}),
        (180, {}),
    ],
)
def test_each_method_states_how_many_rows_it_needs(rows: int, left_out: dict[str, str]) -> None:
    logits, labels = drawn(rows)
    labels[:30] = np.arange(min(rows, 30)) % 3
    choice = calibration.choose(logits, labels)
    assert choice.not_tried == {name: f"needs {need} rows" for name, need in left_out.items()}
    tried = {"none", "temperature", "bcts", "platt"} - set(left_out)
    assert set(choice.log_losses) == (tried if len(tried) > 1 else set())


def test_a_label_that_hardly_occurs_gets_no_offset() -> None:
    logits, labels = drawn(400)
    labels = np.where(labels == 2, 0, labels)
    labels[:9] = 2
    choice = calibration.choose(logits, labels)
    assert choice.not_tried == dict.fromkeys(("bcts", "platt"), "needs 10 rows of each label")
    one_label = calibration.choose(logits, np.zeros(400, int))
    assert set(one_label.not_tried.values()) == {"needs two labels"}


def test_answers_that_are_all_right_make_nothing_certain() -> None:
    """Their best temperature is the least that can be; one mistake has an opinion."""
    logits, _ = drawn(100, temperature=1.0)
    right = logits.argmax(1)
    sure = calibration.choose(logits, right)
    assert sure.calibrator.method == "none"
    assert sure.not_tried["temperature"] == "needs rows that are answered wrongly"
    wrong = right.copy()
    wrong[:3] = (wrong[:3] + 1) % 3
    assert "temperature" in calibration.choose(logits, wrong).log_losses


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(np.r_[1000.0, 1000.0, 1000.0, np.ones(297)], id="three rows"),
        pytest.param(np.r_[1e6, np.ones(299)], id="one row of a probability of a millionth"),
        pytest.param(np.r_[np.full(10, 1000.0), np.ones(290)], id="one page"),
        pytest.param(np.where(np.arange(300) % 8, 1.0, 50.0), id="one row in eight"),
    ],
)
def test_few_heavy_rows_calibrate_nothing_that_is_calibrated(weights: np.ndarray) -> None:
    rng = np.random.default_rng(7)
    all_logits, all_labels = drawn(20_000, temperature=1.0)
    honest = metrics.log_loss(calibration.Identity().predict_proba(all_logits), all_labels)
    for _ in range(20):
        chosen = rng.choice(20_000, 300, replace=False)
        choice = calibration.choose(
            all_logits[chosen], all_labels[chosen], weights, groups=np.arange(300) // 10
        )
        found = metrics.log_loss(choice.calibrator.predict_proba(all_logits), all_labels)
        assert found <= honest + 0.05


def test_one_page_alone_calibrates_nothing() -> None:
    """Nothing could be held out from it to compare the methods on."""
    logits, labels = drawn(200, temperature=5.0)
    choice = calibration.choose(logits, labels, groups=np.zeros(200))
    assert choice.calibrator.method == "none"
    assert set(choice.not_tried.values()) == {"needs two sources"}


@pytest.mark.parametrize("kind", calibration.METHODS[1:])
def test_stored_and_restored_calibrators_agree(kind: type) -> None:
    logits, labels = drawn(200)
    fitted = kind().fit(logits, labels)
    again = calibration.from_dict(fitted.method, fitted.to_dict())
    np.testing.assert_array_equal(fitted.predict_proba(logits), again.predict_proba(logits))
    np.testing.assert_allclose(again.predict_proba(logits).sum(1), 1)


def test_extreme_logits_stay_probabilities() -> None:
    extreme = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    for calibrator in (
        calibration.Identity(),
        calibration.TemperatureScaling(0.05),
        calibration.BiasCorrectedTemperature(0.05, (10, -10, 0)),
        calibration.PlattScaling((50, 50, 50)),
    ):
        p = calibrator.predict_proba(extreme)
        assert np.isfinite(p).all()
        np.testing.assert_allclose(p.sum(1), 1)


def test_figures_equal_scikit_learns() -> None:
    logits, labels = drawn(400)
    p = calibration.Identity().predict_proba(logits)
    w = RNG.random(400) + 0.1
    assert metrics.log_loss(p, labels, w) == pytest.approx(
        sklearn_log_loss(labels, p, sample_weight=w), abs=1e-9
    )
    assert metrics.brier(p, labels, w) == pytest.approx(
        brier_score_loss(labels, p, sample_weight=w, labels=[0, 1, 2], scale_by_half=False),
        abs=1e-9,
    )


def test_ece_has_a_bin_for_every_confidence() -> None:
    p = np.array([[1.0, 0, 0], [0.4, 0.3, 0.3], [0.35, 0.33, 0.32], [0.0, 1.0, 0.0]])
    error, bins = metrics.ece(p, np.array([0, 0, 1, 0]))
    assert sum(row["count"] for row in bins) == 4
    # Bin of 1.0: half right; bin of .35–.40: one of two right at mean confidence .375.
    assert error == pytest.approx(0.5 * 0.5 + 0.5 * abs(0.5 - 0.375))


def test_reliability_by_label_equals_scikit_learns_curve() -> None:
    logits, labels = drawn(900)
    p = calibration.Identity().predict_proba(logits)
    table = metrics.label_reliability(p, labels)
    for k, name in enumerate(("supports", "refutes", "neutral")):
        true, said = calibration_curve(labels == k, p[:, k], n_bins=metrics.BINS)
        filled = [row for row in table[name] if row["count"]]
        np.testing.assert_allclose([row["accuracy"] for row in filled], true, atol=1e-12)
        np.testing.assert_allclose([row["confidence"] for row in filled], said, atol=1e-12)
        assert sum(row["count"] for row in table[name]) == 900


def test_the_noise_floor_is_what_a_perfect_model_shows() -> None:
    observed, floors = [], []
    for _ in range(40):
        logits, labels = drawn(1000)
        p = calibration.Identity().predict_proba(logits)
        observed.append(metrics.ece(p, labels)[0])
        floors.append(metrics.ece_floor(p, draws=50))
    assert np.mean(observed) == pytest.approx(np.mean(floors), rel=0.15)
    assert 0.02 < np.mean(floors) < 0.04
    assert metrics.ece_floor(p) == metrics.ece_floor(p)


def test_debiasing_comes_nearer_to_the_truth() -> None:
    """The truth is the same model's ECE on very many rows; a sure model is 20 points too sure."""
    for factor in (1.0, 2.5):
        logits, labels = drawn(60_000, temperature=factor)
        p = calibration.Identity().predict_proba(logits)
        true = metrics.ece(p, labels)[0]
        tables = [metrics.ece(p[k::200], labels[k::200]) for k in range(200)]
        plain = np.mean([error for error, _ in tables])
        debiased = np.mean([metrics.debiased_ece(bins) for _, bins in tables])
        assert abs(debiased - true) < 0.7 * abs(plain - true)


def test_bins_without_spread_are_not_debiased() -> None:
    p = np.tile([0.9, 0.05, 0.05], (50, 1))
    error, bins = metrics.ece(p, np.zeros(50, int))
    assert error == pytest.approx(0.1)
    assert metrics.debiased_ece(bins) == pytest.approx(0.1)


def test_brier_skill_is_measured_from_the_label_mix() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    mix = np.tile([0.5, 0.3, 0.2], (100, 1))
    assert metrics.brier_skill(mix, labels) == pytest.approx(0)
    assert metrics.brier_skill(np.eye(3)[labels], labels) == pytest.approx(1)
    assert metrics.brier_skill(np.full((100, 3), 1 / 3), labels) < 0
    assert metrics.brier_skill(mix, np.zeros(100, int)) is None
    weights = np.where(labels == 0, 2.0, 1.0)
    weighted_mix = np.tile(np.array([100, 30, 20]) / 150, (100, 1))
    assert metrics.brier_skill(weighted_mix, labels, weights) == pytest.approx(0)


def test_mcnemar_known_values() -> None:
    assert metrics.mcnemar_exact(0, 0) == 1.0
    assert metrics.mcnemar_exact(1, 9) == pytest.approx(0.021484375)


def test_the_p_value_of_a_loss_is_the_sign_tests_and_copies_of_a_pair_do_not_lower_it() -> None:
    nine_of_ten = np.array([-1] * 9 + [1] + [0] * 20)
    apart = np.arange(len(nine_of_ten))
    assert metrics.loss_p(nine_of_ten, apart) == pytest.approx(0.0107421875)
    assert metrics.loss_p(-nine_of_ten, apart) > 0.9
    assert metrics.loss_p(np.repeat(nine_of_ten, 3), np.repeat(apart, 3)) == pytest.approx(
        0.0107421875
    )
    # Two groups that lost three and one: all four ways of signs, of which one is as low.
    assert metrics.loss_p(np.array([-1, -1, -1, -1]), np.array([0, 0, 0, 1])) == 0.25
    assert metrics.loss_p(np.zeros(5), np.arange(5)) == 1.0


def one_hot(labels: np.ndarray, sharp: float = 0.8) -> np.ndarray:
    p = np.full((len(labels), 3), (1 - sharp) / 2)
    p[np.arange(len(labels)), labels] = sharp
    return p


def models(n: int, groups: int, right_a: float, right_b: float) -> metrics.Comparison:
    labels = RNG.integers(0, 3, n)
    wrong = (labels + 1) % 3
    a = np.where(RNG.random(n) < right_a, labels, wrong)
    b = np.where(RNG.random(n) < right_b, labels, wrong)
    return metrics.compare(one_hot(a), one_hot(b), labels, RNG.integers(0, groups, n), seed=1)


def test_the_gate_says_better_worse_and_nothing_below_its_floors() -> None:
    assert metrics.gate(models(600, 100, 0.5, 0.75)) == "better"
    assert metrics.gate(models(600, 100, 0.75, 0.5)) == "worse"
    assert metrics.gate(models(140, 100, 0.3, 0.9)) == "inconclusive"
    assert metrics.gate(models(600, 10, 0.3, 0.9)) == "inconclusive"


def test_equal_answers_on_many_rows_are_not_worse() -> None:
    labels = RNG.integers(0, 3, 600)
    p = one_hot(np.where(RNG.random(600) < 0.7, labels, 0))
    compared = metrics.compare(p, p, labels, np.arange(600) // 4)
    assert metrics.gate(compared) == "not_worse"
    assert compared.gained == compared.lost == 0


def test_copying_rows_inside_a_page_narrows_nothing() -> None:
    groups = np.arange(300) // 5
    values = RNG.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.7, 0.2])
    once = metrics.paired_difference(values, groups)
    copied = metrics.paired_difference(np.tile(values, 4), np.tile(groups, 4))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.02)


def test_intervals_cover_the_truth_for_clustered_rows() -> None:
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        groups = np.repeat(np.arange(40), 6)
        page = rng.normal(0, 0.15, 40)[groups]
        values = np.clip(np.round(0.05 + page + rng.normal(0, 0.5, 240)), -1, 1)
        found = metrics.paired_difference(values, groups, seed=trial)
        covered += found.low <= 0.05 <= found.high
    assert covered >= 0.93 * 200 - 8  # 93 % less two standard errors of 200 trials


def test_needed_pairs_grows_with_noise_and_is_positive() -> None:
    quiet, noisy = models(300, 60, 0.9, 0.9), models(300, 60, 0.5, 0.5)
    assert 1 <= metrics.needed_pairs(quiet) < metrics.needed_pairs(noisy)


def test_weights_correct_biased_sampling() -> None:
    """Errors drawn twice as often as right answers: the weighted accuracy is the true one."""
    labels = RNG.integers(0, 3, 60_000)
    right = RNG.random(60_000) < 0.6
    p = one_hot(np.where(right, labels, (labels + 1) % 3))
    chance = np.where(right, 0.3, 0.6)
    drawn_rows = RNG.random(60_000) < chance
    found = metrics.accuracy(p[drawn_rows], labels[drawn_rows], 1 / chance[drawn_rows])
    assert found == pytest.approx(right.mean(), abs=0.01)
    assert metrics.accuracy(p[drawn_rows], labels[drawn_rows]) < 0.5


# --- configuration --------------------------------------------------------------------------------


def test_config_round_trips() -> None:
    for preset in PRESETS.values():
        assert TrainConfig.from_mapping(preset.to_dict()) == preset


def test_the_seeds_preset_is_the_documents() -> None:
    seed = PRESETS["seed"]
    assert (seed.rank, seed.alpha, seed.dropout) == (8, 16, 0.1)
    assert (seed.learning_rate, seed.epochs, seed.batch_size) == (2e-4, 3, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not between 1 and 100"),
        ({"epochs": "2.5"}, "epochs: '2.5' is not a whole number"),
        ({"learning_rate": "nan"}, "learning_rate: nan is not between"),
        ({"rank": True}, "rank: True is not a number"),
        ({"epochs": "1e999"}, "is not a whole number"),
        ({"speed": 1}, "speed: unknown; known are"),
        ({"preset": "fast"}, "preset: 'fast' is not one of default, seed"),
        ({"precision": "fp8"}, "precision: 'fp8' is not one of"),
        ({"corrections_only": "maybe"}, "corrections_only: 'maybe' is not true or false"),
        ({"target_modules": [1]}, "target_modules"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_mapping(values)


def test_text_values_from_forms_and_commands_are_understood() -> None:
    config = TrainConfig.from_mapping(
        {"preset": "seed", "epochs": "5", "learning_rate": "1e-3", "target_modules": "query, key"}
    )
    assert (config.epochs, config.learning_rate, config.rank) == (5, 1e-3, 8)
    assert config.target_modules == ("query", "key")
