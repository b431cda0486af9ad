"""A whole run in this process, on a tiny base: what is learnt, judged, stored and registered."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from adapters_app import evaluation, fitting, recipe, registry, snapshots, storage, training
from adapters_app.models import AdapterVersion, ShadowEvaluation, Snapshot, TrainingRun
from adapters_app.nli import artifact, guard, metrics
from adapters_app.nli.config import TrainConfig
from adapters_app.nli.predict import Predictor
from adapters_app.nli.train import EpochResult, TrainingDiverged, TrainResult, train
from adapters_app.recipe import CannotTrain, Stopped
from adapters_app.training import CancelRequested
from corrections.labels import LABELS
from corrections.models import Correction
from tests.tiny import tiny_base
from tests.verdicts import accept

pytest_plugins = ("tests.serving",)

# One epoch is a handful of steps on a model of a few thousand numbers.
QUICK = {
    "epochs": 2,
    "min_steps": 0,
    "batch_size": 16,
    "learning_rate": 0.03,
    "anchor_weight": 0,
    "max_length": 64,
}
pytestmark = pytest.mark.usefixtures("on_tiny")


@pytest.fixture
def tina(db) -> User:
    return User.objects.create_user("tina")


@pytest.fixture
def carry_out(tina) -> Callable[..., TrainingRun]:
    """Request a run, claim it and carry it out here; the run as it is then."""

    def do(*, should_stop=lambda: False, version=None, against=None, **config) -> TrainingRun:
        if version is None:
            run = training.request(by=tina, config=QUICK | config)
        else:
            run = training.request(by=tina, kind="shadow", version=version, against=against)
        lease = training.claim(run.pk, worker="here:1", device="here:cpu")
        recipe.carry_out(lease, should_stop=should_stop)
        run.refresh_from_db()
        return run

    return do


def evidence_of(run: TrainingRun) -> ShadowEvaluation:
    return run.evaluations.get()


def _share_answered_otherwise(version, calibration):
    base, pairs = recipe.configured_base(), guard.unlabelled().pairs
    digest = version.artifact_digest
    adapter = artifact.read(storage.fetch(digest), base=base, digest=digest)
    calibrator = evaluation.stored_calibrator(calibration)
    before = Predictor(base).probabilities(pairs).argmax(1)
    after = Predictor(base, adapter, calibrator).probabilities(pairs).argmax(1)
    return pytest.approx((before != after).mean())


def test_a_run_ends_with_a_version_its_calibrator_and_its_evidence(carry_out, monkeypatch):
    accept(180, pages=30)
    fits, passes = [], set()

    def spy(base, examples, config, **rest):
        fits.append(({example.premise for example in examples}, len(rest.get("evaluate", ()))))
        passes.add(rest["passes"])
        return train(base, examples, config, **rest)

    monkeypatch.setattr(fitting, "train", spy)
    run = carry_out()
    version = AdapterVersion.objects.get(run=run)
    assert (run.status, run.snapshot.rows, run.error) == ("succeeded", 180, "")
    assert run.step == run.total_steps > 0

    rows = snapshots.load(run.snapshot)
    every = {row.premise for row in rows}
    folds = [{row.premise for row in rows if row.fold == k} for k in range(5)]
    # Side by side, in any order: the released fit on all rows, each sibling without one fold.
    assert sorted((len(seen), judged) for seen, judged in fits) == sorted(
        [(180, 0), *((180 - len(fold), len(fold)) for fold in folds)]
    )
    assert all(every - seen in [set(), *folds] for seen, _ in fits)
    assert len(passes) == 1  # so that a sibling says what the released fit is worth

    for digest in [version.artifact_digest, *version.sibling_digests]:
        stored = artifact.read(storage.fetch(digest), digest=digest)
        assert stored.manifest["snapshot"] == run.snapshot.digest
        assert stored.base_fingerprint == run.base_fingerprint == version.base_fingerprint
    assert len({version.artifact_digest, *version.sibling_digests}) == 6

    calibration = version.calibrations.get()
    assert calibration.rows == 180
    assert calibration.log_loss_after <= calibration.log_loss_before
    assert set(calibration.candidates) == {"none", "temperature", "bcts"}
    assert calibration.not_tried["platt"] == "needs 60 sources of like size"
    after = calibration.reliability_after
    assert after["ece_debiased"] <= calibration.ece_after
    assert after["ece_floor"] > 0
    assert after["brier_skill"] > calibration.reliability_before["brier_skill"]
    assert sum(row["count"] for row in after["labels"]["refutes"]) == 180
    evidence = evidence_of(run)
    assert (evidence.rows, evidence.groups, evidence.incumbent) == (180, 30, None)
    assert evidence.candidate_calibration == calibration
    assert evidence.guard["n"] == 600
    assert len(evidence.guard["phenomena"]) == 12
    flips = evidence.guard["unlabelled"]
    assert flips["n"] >= 3000
    assert flips["flipped"] == _share_answered_otherwise(version, calibration)
    assert 0 < flips["flipped"] < flips["loss_at_most"] <= 1
    compared = evidence.figures["against_incumbent"]
    assert compared["gained"] + compared["lost"] <= len(evidence.flips)
    # The word that gives the label away is easily learnt: the last epoch is the best one.
    assert compared["b"]["log_loss"] < compared["a"]["log_loss"]
    epochs = version.metrics["epochs"]
    best = min(epochs, key=lambda epoch: epoch["choice_log_loss"])
    assert version.metrics["chosen_epoch"] == best["epoch"]
    assert len(version.metrics["suspicious"]) == 36
    assert [each["annotator"] for each in version.metrics["annotators"]] == ["curt"]


def test_the_same_data_and_seed_give_the_same_artifact_which_is_not_compared_with_itself(
    carry_out, tina
):
    accept()
    first = carry_out().produced
    second = carry_out().produced
    assert first.artifact_digest == second.artifact_digest
    assert first.sibling_digests == second.sibling_digests
    registry.promote(first, by=tina, reason="test", expected_revision=0, override=True)
    third = carry_out()
    assert evidence_of(third).verdict == "inconclusive"
    assert "identical" in evidence_of(third).advice[0]
    with pytest.raises(training.TrainingRefused, match="not compared with itself"):
        carry_out(version=second)


def register_with_a_setting_that_is_gone(lease, *, version, register=registry.register, **rest):
    return register(lease, version=replace(version, config=version.config | {"gone": 1}), **rest)


def test_an_existing_version_is_measured_against_what_serves_now(carry_out, tina, monkeypatch):
    accept()
    first = carry_out().produced
    with monkeypatch.context() as older_release:
        older_release.setattr(registry, "register", register_with_a_setting_that_is_gone)
        second = carry_out(seed=7).produced
    assert second.config["gone"] == 1
    registry.promote(first, by=tina, reason="test", expected_revision=0, override=True)
    accept(30, pages=5, start=1000)
    run = carry_out(version=second)
    evidence = evidence_of(run)
    assert (evidence.candidate, evidence.incumbent) == (second, first)
    assert evidence.incumbent_calibration == registry.serving().calibration
    assert (evidence.rows, evidence.later["n"], evidence.later["new_pages"]["n"]) == (120, 30, 30)
    # All of one moment, so whole pages; the last of the five waits.
    bet = evidence.later["confirmation"]
    assert (bet["pages"], bet["rows"], bet["confirmed"]) == (4, 24, False)
    assert not AdapterVersion.objects.filter(run=run).exists()
    # And a candidate is judged against the siblings of what serves, not against the base.
    # Rows that its calibrator was fitted on are no news to it, although its snapshot lacks them.
    recipe.calibrate_again(second, by=tina)
    later = evidence_of(carry_out(version=second)).later
    assert (later["n"], later["new_pages"], later["confirmation"]["rows"]) == (30, {"n": 0}, 0)


def test_every_comparison_with_what_serves_is_an_attempt(carry_out, tina, monkeypatch):
    monkeypatch.setattr(metrics, "MIN_ROWS", 60)
    monkeypatch.setattr(metrics, "MIN_EFFECTIVE_GROUPS", 5)
    accept()
    first = carry_out()
    second = carry_out(seed=7)
    assert [evidence_of(run).figures["attempt"] for run in (first, second)] == [1, 2]
    assert "the 2nd comparison with the base" in " ".join(evidence_of(second).advice)
    again = evidence_of(carry_out(version=second.produced))  # the same rows
    assert again.figures["attempt"] == 2
    recipe.calibrate_again(second.produced, by=tina)
    assert evidence_of(carry_out(version=second.produced)).figures["attempt"] == 3
    # Of what serves next nothing has been tried yet.
    registry.promote(first.produced, by=tina, reason="test", expected_revision=0, override=True)
    against = evidence_of(carry_out(version=second.produced))
    assert (against.incumbent, against.figures["attempt"]) == (first.produced, 1)
    assert against.figures["against_incumbent"]["accuracy"]["confidence"] == 0.95


def test_two_versions_that_do_not_serve_are_compared_fold_by_fold(carry_out, tina, monkeypatch):
    monkeypatch.setattr(metrics, "MIN_ROWS", 60)
    monkeypatch.setattr(metrics, "MIN_EFFECTIVE_GROUPS", 5)
    accept()
    first = carry_out().produced
    accept(30, pages=5, start=1000)
    second = carry_out(seed=7).produced
    accept(30, pages=5, start=2000)
    asked = []

    def spy(base, digests, rows, on_batch, sibling_logits=recipe._sibling_logits):
        asked.append(list(digests))
        return sibling_logits(base, digests, rows, on_batch)

    monkeypatch.setattr(recipe, "_sibling_logits", spy)
    run = carry_out(version=second, against=first)
    evidence = evidence_of(run)
    assert asked == [second.sibling_digests, first.sibling_digests]
    assert (evidence.candidate, evidence.incumbent) == (second, first)
    assert evidence.incumbent_calibration == registry.latest_calibration(first)
    assert not evidence.incumbent_served
    assert (evidence.rows, evidence.later["n"]) == (150, 30)
    assert "no evidence for a promotion: v1 did not serve" in evidence.advice[-1]
    other_way = evidence_of(carry_out(version=first, against=second)).figures["against_incumbent"]
    one_way = evidence.figures["against_incumbent"]
    assert (other_way["gained"], other_way["lost"]) == (one_way["lost"], one_way["gained"])

    # It is no attempt: neither at what serves now, nor at its incumbent once that serves.
    with_base = evidence_of(carry_out(version=second))
    assert (with_base.incumbent_served, with_base.figures["attempt"]) == (True, 3)
    registry.promote(first, by=tina, reason="test", expected_revision=0, override=True)
    served = evidence_of(carry_out(version=second, against=first))
    assert (served.incumbent_served, served.figures["attempt"]) == (True, 1)
    assert served.advice[-1:] != evidence.advice[-1:]
    # What serves can be the one that is measured, and the base what it is measured against.
    with_base = evidence_of(carry_out(version=first, against="base"))
    assert (with_base.incumbent, with_base.incumbent_served) == (None, False)
    assert with_base.candidate_calibration == registry.serving().calibration


def test_without_known_probabilities_nothing_is_claimed(carry_out):
    accept(sampling="user")
    run = carry_out()
    evidence, calibration = evidence_of(run), run.produced.calibrations.get()
    assert (calibration.method, calibration.rows) == ("none", 0)
    assert calibration.reliability_after == {}
    assert (evidence.rows, evidence.figures["against_incumbent"]) == (0, None)
    assert evidence.verdict in {"inconclusive", "worse"}  # worse only where the guard set fell
    assert evidence.advice == [evaluation.NO_KNOWN_ROWS]


def test_a_few_known_rows_are_too_few_to_calibrate_on(carry_out):
    accept(sampling="user")
    accept(20, pages=5, start=500)
    run = carry_out()
    calibration = run.produced.calibrations.get()
    assert (calibration.method, calibration.rows) == ("none", 20)
    assert run.produced.metrics["epochs"][0]["choice_rows"] == 110
    assert evidence_of(run).rows == 20


def test_the_sibling_of_an_empty_fold_is_the_released_fit(carry_out):
    accept(folds=3)
    version = carry_out().produced
    assert version.sibling_digests[3:] == [version.artifact_digest] * 2
    assert len(set(version.sibling_digests)) == 4


def test_verdicts_from_one_fold_cannot_be_judged(carry_out):
    accept(folds=1)
    with pytest.raises(CannotTrain, match="more pages"):
        carry_out()
    assert not AdapterVersion.objects.exists()


def test_verdicts_about_one_claim_cannot_be_judged(carry_out):
    accept()
    Correction.objects.update(hypothesis="The drug is safe.")
    with pytest.raises(CannotTrain, match="more claims"):
        carry_out()
    assert not AdapterVersion.objects.exists()


def test_a_sibling_learns_neither_from_the_pages_nor_about_the_claims_that_it_judges():
    rows = [replace(row(i, LABELS[i % 3]), fold=i % 5, hypothesis=f"h{i}") for i in range(20)]
    # White space and case apart, row 7 (fold 2) is about the claim of row 5 (fold 0).
    rows[7] = replace(rows[7], hypothesis=" H5 ")
    learnt = fitting.blind(rows, [each for each in rows if each.fold == 0])
    assert {each.correction_id for each in learnt} == {i for i in range(20) if i % 5} - {7}


def test_rows_about_claims_that_a_version_has_learnt_are_not_its_to_be_judged_on():
    learnt = [replace(row(i, LABELS[i % 3]), fold=i % 5, hypothesis=f"h{i}") for i in range(10)]
    news = [
        replace(learnt[0], correction_id=100, group_id=100, fold=1),  # sibling 1 learnt it
        replace(learnt[1], correction_id=101, group_id=101, fold=1),  # sibling 1 did not
        replace(row(102, LABELS[0]), fold=1, hypothesis="new"),
    ]
    rows = [*learnt, *news]
    unseen = recipe._unseen(learnt, rows, by_claim=True)
    assert unseen.tolist() == [True] * 10 + [False, True, True]
    # Siblings of before left out no claims: here that of `learnt[1]`, which is on another fold too.
    twice = [*learnt, replace(learnt[1], correction_id=50, group_id=50, fold=2)]
    assert recipe._unseen(twice, rows, by_claim=True)[1]
    assert not recipe._unseen(twice, rows, by_claim=False)[1]


def test_verdicts_taken_back_after_the_request_are_noticed(tina):
    accept()
    run = training.request(by=tina, config=QUICK)
    lease = training.claim(run.pk, worker="here:1", device="here:cpu")
    Correction.objects.filter(correct_label="refutes").update(status="rejected")
    with pytest.raises(CannotTrain, match="refutes"):
        recipe.carry_out(lease, should_stop=lambda: False)


def test_a_request_of_another_release_is_explained(tina):
    accept()
    run = training.request(by=tina, config=QUICK)
    TrainingRun.objects.update(config=run.config | {"gone": 1})
    lease = training.claim(run.pk, worker="here:1", device="here:cpu")
    with pytest.raises(CannotTrain, match="another release"):
        recipe.carry_out(lease, should_stop=lambda: False)


def test_a_filter_learns_from_some_and_is_judged_on_all(carry_out):
    accept(180, pages=30)
    run = carry_out(corrections_only=True)
    assert run.snapshot.rows == evidence_of(run).rows == 180


def test_confirmations_count_for_those_that_nobody_sent(carry_out, monkeypatch, admin_client):
    """A fifth of what people sent confirms an answer; of the answers drawn, half are right."""
    wrong = {"labels": ("supports", "refutes"), "predicted_label": "neutral"}
    accept(60, sampling="user", verdict="corrected", **wrong)
    right = {"labels": ("neutral",), "predicted_label": "neutral"}
    accept(15, sampling="user", verdict="confirmed", start=100, **right)
    accept(60, sampling="audit", start=200)
    weights = {}

    def spy(base, examples, config, **rest):
        weights.update({example.premise: example.weight for example in examples})
        return train(base, examples, config, **rest)

    monkeypatch.setattr(fitting, "train", spy)
    version = AdapterVersion.objects.get(run=carry_out())
    said = version.metrics["confirmation_weight"]
    assert 2.5 < said < 4  # four to one against even odds, drawn towards one
    sent = {row.premise: row for row in snapshots.load(version.snapshot) if not row.known}
    confirmed = [premise for premise, row in sent.items() if row.verdict == "confirmed"]
    assert all(weights[premise] > 2 for premise in confirmed)
    assert all(weights[premise] == 1 for premise in weights.keys() - set(confirmed))
    page = admin_client.get(f"/admin/adapters_app/adapterversion/{version.pk}/change/")
    assert f"A confirmation that somebody sent counted {said:.1f} times" in page.content.decode()

    alike = AdapterVersion.objects.get(run=carry_out(reporting_weights=False, seed=7))
    assert alike.metrics["confirmation_weight"] == 1
    assert set(weights.values()) == {1}


def test_a_diverged_training_registers_nothing(carry_out, monkeypatch):
    accept()

    def diverge(*_, **__):
        raise TrainingDiverged("the loss became nan at step 3")

    monkeypatch.setattr(fitting, "train", diverge)
    with pytest.raises(TrainingDiverged):
        carry_out()
    assert not AdapterVersion.objects.exists()


def test_a_full_disk_is_noticed_before_the_work(carry_out, settings):
    accept()
    settings.LYRA_MIN_FREE_MIB = 10**9
    with pytest.raises(CannotTrain, match="MiB are free"):
        carry_out()


@pytest.mark.parametrize("polls", [0, 3, 10, 25])
def test_whoever_is_told_to_stop_stops(carry_out, polls):
    accept()
    looks = iter(range(1000))
    with pytest.raises(Stopped):
        carry_out(should_stop=lambda: next(looks) >= polls)
    assert not AdapterVersion.objects.exists()


@pytest.mark.parametrize("stage", ["snapshot", "base", "fitting", "storing", "registering"])
def test_a_cancel_is_heard_at_every_stage(carry_out, tina, monkeypatch, stage):
    accept()
    beat = training.heartbeat

    def cancel_then_beat(lease, **told):
        if told.get("stage") == stage:
            training.cancel(TrainingRun.objects.get(), by=tina)
        beat(lease, **told)

    monkeypatch.setattr(training, "heartbeat", cancel_then_beat)
    with pytest.raises(CancelRequested):
        carry_out()
    assert not AdapterVersion.objects.exists()


def test_a_cancel_in_the_last_moment_still_wins(carry_out, tina, monkeypatch):
    accept()
    succeed = training.succeed

    def cancel_then_succeed(lease):
        training.cancel(TrainingRun.objects.get(), by=tina)
        succeed(lease)

    monkeypatch.setattr(training, "succeed", cancel_then_succeed)
    with pytest.raises(CancelRequested):
        carry_out()
    assert not AdapterVersion.objects.exists()
    assert not ShadowEvaluation.objects.exists()


def test_an_artifact_that_was_not_stored_is_never_registered(carry_out, monkeypatch):
    accept()
    monkeypatch.setattr(storage, "holds", lambda digest: False)
    with pytest.raises(storage.ArtifactMissing):
        carry_out()
    assert not AdapterVersion.objects.exists()


def test_a_served_version_of_another_base_is_named(carry_out, tina, settings, tmp_path):
    accept()
    settings.LYRA_BASE_MODEL = tiny_base(tmp_path / "base")
    version = carry_out().produced
    registry.promote(version, by=tina, reason="test", expected_revision=0, override=True)
    tiny_base(tmp_path / "base", seed=1)
    with pytest.raises(CannotTrain, match="roll back to the base first"):
        carry_out()


def test_a_version_is_calibrated_again_on_more_verdicts(carry_out, tina):
    accept()
    version = carry_out().produced
    first = version.calibrations.get()
    own = {name: getattr(first, f"{name}_after") for name in ("brier", "ece", "log_loss")}
    second = recipe.calibrate_again(version, by=tina)
    assert (second.replaces, second.rows) == (first, 90)
    assert second.replaced == pytest.approx(own)  # the same pairs
    accept(30, pages=5, start=1000)
    third = recipe.calibrate_again(version, by=tina)
    assert (third.number, third.rows, third.created_by) == (3, 120, tina)
    assert third.replaces == second
    assert (first.snapshot, second.snapshot) == (version.snapshot, version.snapshot)
    assert third.snapshot.rows == 120
    Snapshot.objects.update(frozen_at=timezone.now() - timedelta(days=1))
    assert snapshots.prune() == {}  # its evidence stays
    assert third.replaced["log_loss"] != pytest.approx(own["log_loss"], abs=1e-6)


def test_no_calibrator_is_fitted_on_claims_that_the_siblings_have_learnt(carry_out, tina):
    learnt = accept()[0].hypothesis  # of a page in fold 0
    version = carry_out().produced
    accept(30, pages=5, start=1000, hypothesis=learnt)  # a page in each fold
    again = recipe.calibrate_again(version, by=tina)
    assert again.rows == 90 + 6
    accept(30, pages=5, start=2000)
    assert recipe.calibrate_again(version, by=tina).rows == 90 + 6 + 30


def test_every_verdict_is_ranked_and_the_most_doubtful_fifth_listed():
    rows = [row(number, "supports") for number in range(10)]
    probabilities = np.full((10, 3), 0.3)
    probabilities[:, 0] = [0.9, 0.5, 0.8, 0.4, 0.6, 0.7, 0.95, 0.85, 0.45, 0.65]
    found = evaluation.suspicious(probabilities, rows)
    assert [doubt["correction_id"] for doubt in found] == [3, 8]
    assert [doubt["probability_of_label"] for doubt in found] == [0.4, 0.45]


def test_who_confirms_everything_is_listed_before_who_reads():
    careful = [row(i, "refutes" if i % 2 else "supports", annotator="curt") for i in range(40)]
    stamped = [row(100 + i, "supports", annotator="sam") for i in range(40)]
    rows = [replace(each, predicted_label="supports") for each in careful + stamped]
    probabilities = np.array([[0.2, 0.7, 0.1] if i % 2 else [0.7, 0.2, 0.1] for i in range(80)])
    sam, curt = evaluation.annotators(probabilities, rows, said={})
    assert (sam["annotator"], sam["n"], sam["confirmed"]) == ("sam", 40, 1.0)
    assert (curt["annotator"], curt["confirmed"]) == ("curt", 0.5)
    assert sam["expected"] == curt["expected"] == pytest.approx(0.45)
    assert sam["careless"]["low"] > curt["careless"]["mean"]

    repaired = [replace(each, label="refutes") if i % 2 else each for i, each in enumerate(rows)]
    stamped = {each.correction_id: "supports" for each in rows[41::2]}
    assert evaluation.annotators(probabilities, repaired, said=stamped) == [sam, curt]


@pytest.mark.parametrize(
    ("wrong_at_last", "chosen"),
    [
        ([0, 10, 20, *range(1, 30, 3)], 1),  # a third more of all: clearly worse
        ([10, 20, 1, 2], 2),  # one more in all, as chance would have it
    ],
)
def test_the_epoch_that_tells_best_is_chosen_however_sure_of_itself_it_is(wrong_at_last, chosen):
    """… by all rows: none of these was drawn, so that no figure is shown of them."""
    sent = {"sampling": "user", "sampling_probability": None}
    rows = [replace(row(i, LABELS[i % 3]), fold=i % 2, **sent) for i in range(30)]

    def answers(sureness: float, wrong: list[int]) -> np.ndarray:
        columns = np.arange(30) % 3
        columns[wrong] = (columns[wrong] + 1) % 3
        return sureness * np.eye(3, dtype=np.float32)[columns]

    sure, vague = answers(30, [0, 10, 20]), answers(0.3, wrong_at_last)
    held = {k: np.arange(k, 30, 2) for k in (0, 1)}
    siblings = {
        k: TrainResult(
            [EpochResult(e + 1, 1.0, z[of], None) for e, z in enumerate((sure, vague))], 0, 0
        )
        for k, of in held.items()
    }
    logits, epochs, number = fitting._judged(siblings, held, rows, TrainConfig(epochs=2))
    assert number == chosen
    assert (logits == (sure, vague)[chosen - 1]).all()
    assert {epoch["choice_rows"] for epoch in epochs} == {30}


@pytest.mark.parametrize(
    ("behind", "pages", "chosen"),
    [
        ((0.0, 0.5, 0.5), 30, 0),  # clearly worse from the second on
        ((0.5, 0.0, 0.5), 30, 1),
        ((0.0, 0.5, 0.01), 30, 2),  # no worse than chance would have it: the schedule's end
        ((0.0, 0.01, 0.5), 30, 1),
        ((0.0, 0.5, 0.5), 1, 2),  # of one page there is no telling
    ],
)
def test_the_last_epoch_is_taken_unless_an_earlier_one_is_better_by_more_than_chance(
    behind, pages, chosen
):
    noise = np.random.default_rng(0).normal(scale=0.5, size=(3, 300))
    noise -= noise.mean(axis=1, keepdims=True)
    losses = 1 + np.array(behind)[:, None] + noise
    assert fitting.latest_as_good(losses, np.ones(300), np.arange(300) % pages) == chosen


def row(number: int, label: str, annotator: str = "") -> snapshots.SnapshotRow:
    return snapshots.SnapshotRow(
        correction_id=number,
        pair_digest=str(number),
        premise="p",
        hypothesis="h",
        label=label,
        predicted_label=label,
        predicted_confidence=0.9,
        verdict="confirmed",
        fold=0,
        group_id=number,
        sampling="complete",
        sampling_probability=1.0,
        domain="",
        annotator=annotator,
        reviewed_at="",
    )


def test_the_presets_are_valid_requests(tina):
    accept()
    for preset in ("default", "seed"):
        run = training.request(by=tina, config={"preset": preset})
        assert TrainConfig.from_mapping(run.config).preset == preset
