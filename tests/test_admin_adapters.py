"""The admin's pages about runs, versions and the ledger: what each person sees and may do."""

import functools
import re
from dataclasses import fields
from datetime import timedelta
from html.parser import HTMLParser

import numpy as np
import pytest
from django.contrib import admin
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from adapters_app import dashboard, evidence, liveness, registry, storage, training
from adapters_app.forms import CONFIG_HELP, RequestTrainingForm
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    LearningCurve,
    PredictionTally,
    Promotion,
    Serving,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
)
from adapters_app.nli import metrics
from adapters_app.nli.config import PRESETS, TrainConfig
from adapters_app.templatetags.figures import confidence
from corrections import intake
from corrections.labels import LABELS
from corrections.models import Correction
from tests.verdicts import accept
from tests.versions import promote, register, write_adapter

pytest_plugins = ("tests.serving",)

INDEX = "/admin/"
RUNS = "/admin/adapters_app/trainingrun/"
VERSIONS = "/admin/adapters_app/adapterversion/"
LEDGER = "/admin/adapters_app/promotion/"
REQUEST = f"{RUNS}request/"
ROLLBACK = f"{LEDGER}rollback/"


# --- The stage ------------------------------------------------------------------------------------


def page_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def tina(trainer):
    return page_of(trainer)


@pytest.fixture
def rita(releaser):
    return page_of(releaser)


@pytest.fixture
def curt(curator):
    return page_of(curator)


@pytest.fixture
def ada(administrator):
    return page_of(administrator)


@functools.cache
def comparison(attempt=1):
    """Figures as nli.metrics really makes them: 200 rows, the candidate somewhat better."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    a, b = rng.dirichlet([1, 1, 1], 200), rng.dirichlet([1, 1, 1], 200)
    b[:60] = np.eye(3)[labels[:60]] * 0.9 + 1 / 30
    level = metrics.spent_level(attempt)
    return metrics.compare(a, b, labels, rng.integers(0, 40, 200), level=level)


def figures():
    compared = comparison()
    return {
        "figures": {
            "against_incumbent": compared.to_dict(),
            "against_base": compared.to_dict(),
            "stated_effect": metrics.STATED_EFFECT,
        },
        "per_label": {
            label.value: {
                "incumbent": compared.a["per_label"][label.value],
                "candidate": compared.b["per_label"][label.value],
            }
            for label in LABELS
        },
        "flips": [
            {
                "correction_id": 7,
                "premise": "Two of nine wards stopped using the drug.",
                "hypothesis": "Every ward stopped using the drug.",
                "label": "refutes",
                "incumbent": "supports",
                "candidate": "refutes",
            }
        ],
        "guard": {
            "n": 600,
            "base_accuracy": 0.72,
            "incumbent_accuracy": 0.72,
            "candidate_accuracy": 0.71,
            "gained": 20,
            "lost": 26,
            "p_loss": 0.23,
            "fails": False,
            "unlabelled": {"n": 3180, "flipped": 0.0412, "loss_at_most": 0.0523},
            "phenomena": {"role_swap": {"n": 50, "base": 0.7, "incumbent": 0.7, "candidate": 0.66}},
        },
        "advice": ["Accuracy is 55.0 % on 200 pairs, below the wished-for 85 %."],
    }


@pytest.fixture
def make_version(on_tiny, trainer, tiny_model):
    """Registers a version with its artifact, calibrator and a full shadow evaluation."""

    def make(*, verdict="better", against=None):
        number = AdapterVersion.objects.count() + 1
        digest = storage.put(on_tiny / write_adapter(on_tiny, tiny_model, seed=number))
        version = register(trainer, number, digest, tiny_model, against=against, verdict=verdict)
        needed = 140 if verdict == "inconclusive" else None
        version.evaluations.update(needed_pairs=needed, **figures())
        return version

    return make


def make_run(user, **changes):
    return TrainingRun.objects.create(
        requested_by=user, config=TrainConfig().to_dict(), base_name="minilm-nli", **changes
    )


def running(user, **changes):
    now = timezone.now()
    held = {
        "status": "running",
        "started_at": now,
        "heartbeat_at": now,
        "lease_expires_at": now,
        "device": "here:cpu",
    }
    return make_run(user, **held | changes)


@pytest.fixture
def three_verdicts(curator, settings):
    """The least one can train on here: a verdict of each label, accepted."""
    settings.LYRA_TRAINING_FLOOR = 3
    for label in LABELS:
        correction, _ = intake.record_correction(
            by=curator,
            premise=f"Premise of {label}.",
            hypothesis=f"Hypothesis of {label}.",
            predicted_label="neutral",
            predicted_confidence=0.6,
            correct_label=label,
        )
        intake.review([correction.pk], by=curator, status="accepted")


def text_of(response):
    """The page's words, without markup, white space collapsed."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", response.content.decode(), flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def html_of(response):
    return response.content.decode()


def said(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


def config_data(**changes):
    form = RequestTrainingForm()
    data = {name: form[name].value() for name in form.config_names}
    data = {name: value for name, value in data.items() if value is not False}
    return {"preset": "default", "scope": "user", "reason": "new field"} | data | changes


def url(version, what="change"):
    return f"{VERSIONS}{version.pk}/{what}/"


# --- The first page -------------------------------------------------------------------------------


def test_a_new_system_says_that_the_base_serves_and_what_is_missing(ada, db):
    page = text_of(ada.get(INDEX))
    assert "The base" in page
    assert (
        "0 accepted corrected verdicts, confirmations not counted; by policy 100 start a run"
        in page
    )
    assert "Nothing waits for you" in page
    html = html_of(ada.get(INDEX))
    where = "/api/v1/docs#/nli/nli"
    assert f'<a class="button" href="{where}">See how to ask and correct</a>' in html
    assert f'<a href="{where}">Predict</a>' in html


def test_a_curator_is_told_how_much_waits_for_review(curt, curator):
    intake.record_correction(
        by=curator,
        premise="It rained on three days.",
        hypothesis="It rained on most days.",
        predicted_label="supports",
        predicted_confidence=0.7,
        correct_label="neutral",
    )
    page = text_of(curt.get(INDEX))
    assert "1 correction waits for review. Accepted ones" in page
    assert "Last shadow verdict" not in page  # not theirs to see


def test_the_share_of_reported_errors_is_told_with_its_n(ada, administrator):
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    PredictionTally.objects.create(hour=hour, label="supports", count=40)
    intake.record_correction(
        by=administrator,
        premise="It rained on three days.",
        hypothesis="It rained on most days.",
        predicted_label="supports",
        predicted_confidence=0.7,
        predicted_digest="b" * 64,
        correct_label="neutral",
    )
    page = text_of(ada.get(INDEX))
    assert "2.5 % of the pairs answered in the last 30 days were reported as wrong." in page
    assert "1 of 40. People report by choice" in page
    assert "whose answer it was" not in page


def test_reports_on_what_was_answered_elsewhere_are_in_no_share(ada):
    """As those of an imported Lyra database, on the first day."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    PredictionTally.objects.create(hour=hour, label="supports", count=20)
    accept(60, sampling="user")
    page = text_of(ada.get(INDEX))
    card = page.partition("Errors that people reported")[2].partition("Live accuracy")[0]
    assert "of 20 pairs answered in the last 30 days none is known to have been reported." in card
    assert "30 reports do not say whose answer it was." in card
    assert "%" not in card
    accept(60, start=100, sampling="user", predicted_digest="b" * 64)
    assert dashboard.reported_errors().share is None
    page = text_of(ada.get(INDEX))
    assert "30 were reported in the last 30 days, and only 20 answered." in page
    assert "30 more reports do not say whose answer it was." in page


def test_a_condition_is_met_or_not_met(ada, db):
    page = text_of(ada.get(INDEX))
    assert "met Nothing was trained yet; by policy 7 days pass between two trainings." in page
    assert "not met Nothing" not in page
    assert "not met 0 accepted corrected verdicts" in page


def test_the_last_run_is_the_one_that_ended_last(tina, trainer):
    now = timezone.now()
    long = make_run(trainer, status="succeeded", finished_at=now)
    make_run(trainer, status="cancelled", finished_at=now - timedelta(minutes=8))
    assert f"The last run, run {long.pk} : succeeded" in text_of(tina.get(INDEX))


def test_a_releaser_is_sent_to_a_version_nobody_decided_about(rita, make_version):
    version = make_version()
    response = rita.get(INDEX)
    assert "v1 is better than the base." in text_of(response)
    assert url(version).encode() in response.content


def test_the_running_run_is_shown_with_its_progress(tina, trainer):
    run = running(trainer, stage="fitting", step=30, total_steps=120, eta_seconds=75)
    response = tina.get(INDEX)
    page = text_of(response)
    assert "Training five siblings, each blind to a fold, and the adapter to release" in page
    assert "step 30 of 120" in page
    assert "about 1 min 15 s left" in page
    assert f"{RUNS}{run.pk}/progress/".encode() in response.content


def test_a_queued_run_nobody_works_on_is_the_most_pressing_thing(tina, trainer, settings, tmp_path):
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": str(tmp_path / "no-probes"),
        }
    }
    run = make_run(trainer)
    assert f"Run {run.pk} waits, and no training worker has answered" in text_of(tina.get(INDEX))


# --- Runs -----------------------------------------------------------------------------------------


def test_the_list_of_runs_names_state_and_outcome(tina, trainer, make_version):
    make_version()
    running(trainer, stage="calibration", step=9, total_steps=10)
    page = text_of(tina.get(RUNS))
    assert "succeeded" in page
    assert "Calibrating, 90 %" in page
    assert "v1" in page


@pytest.mark.parametrize(
    ("path", "columns"),
    [(RUNS, ["title", "state", "outcome"]), (VERSIONS, ["name_", "verdict", "buttons"])],
)
def test_what_matters_most_is_where_a_narrow_window_shows_it(rita, make_version, path, columns):
    make_version()
    row = re.search(r"<tbody>.*?</tr>", html_of(rita.get(path)), flags=re.S)[0]
    assert re.findall(r'class="field-(\w+)', row)[:3] == columns


def test_a_failed_run_explains_itself(tina, trainer):
    run = make_run(trainer, status="failed", error="Not enough memory for batch_size 64; lower it.")
    page = text_of(tina.get(f"{RUNS}{run.pk}/change/"))
    assert "It failed Not enough memory for batch_size 64; lower it." in page


def test_a_running_run_says_for_how_long_and_has_not_ended(tina, trainer):
    began = timezone.now() - timedelta(seconds=80)
    run = running(trainer, started_at=began, heartbeat_at=began, stage="loading")
    path = f"{RUNS}{run.pk}/"
    page = text_of(tina.get(f"{path}change/"))
    assert re.search(r"Running for 1 min 2\d s", page)
    assert "Ended" not in page
    assert "Nothing was written yet." in page
    told = tina.get(f"{path}progress/").json()
    assert told["elapsed"].startswith("1 min 2")
    assert told["heartbeat"].startswith("last report 1 min 2")
    assert told["log"] == "Nothing was written yet."
    assert told["fraction"] is None
    training_over = {"status": "succeeded", "finished_at": began + timedelta(seconds=75)}
    TrainingRun.objects.update(**training_over)
    page = text_of(tina.get(f"{path}change/"))
    assert "(took 1 min 15 s)" in page
    assert "Running for" not in page


def test_what_was_left_out_is_told_where_something_was(tina, make_version):
    run = make_version().run
    Snapshot.objects.update(left_out={"duplicates": 3, "in conflict": 0})
    page = text_of(tina.get(f"{RUNS}{run.pk}/change/"))
    assert page.count("Left out") == 1
    assert "Left out 3 duplicates" in page


def test_progress_is_answered_as_data(tina, trainer):
    run = running(
        trainer,
        stage="fitting",
        step=30,
        total_steps=120,
        eta_seconds=75,
        loss_curve=[[1, 1.2], [2, 0.8]],
        log_tail="Training on all rows.",
    )
    progress = tina.get(f"{RUNS}{run.pk}/progress/").json()
    assert progress["status"] == "running"
    assert progress["stage"].startswith("Training five siblings, each blind to a fold")
    assert progress["fraction"] == pytest.approx(0.25)
    assert progress["eta"] == "about 1 min 15 s left"
    assert progress["log"] == "Training on all rows."
    assert progress["figure"]["data"][0]["x"] == [1, 2]


def test_a_trainer_cancels_a_run(tina, trainer):
    run = make_run(trainer)
    response = tina.post(f"{RUNS}{run.pk}/cancel/")
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert run.cancel_requested_by == trainer
    assert response.url == f"{RUNS}{run.pk}/change/"


def test_cancelling_a_run_that_is_over_is_refused_in_words(tina, trainer):
    run = make_run(trainer, status="succeeded")
    assert "already over" in said(tina.post(f"{RUNS}{run.pk}/cancel/"))[0]


def test_cancelling_is_for_post_and_for_trainers(tina, rita, trainer):
    run = make_run(trainer)
    assert tina.get(f"{RUNS}{run.pk}/cancel/").status_code == 405
    assert rita.post(f"{RUNS}{run.pk}/cancel/").status_code == 403
    run.refresh_from_db()
    assert run.cancel_requested_at is None


def test_training_is_requested_with_a_config_of_its_own(tina, trainer, three_verdicts):
    response = tina.post(REQUEST, config_data(rank=4, domain="medicine", corrections_only=""))
    run = TrainingRun.objects.get()
    assert response.url == f"{RUNS}{run.pk}/change/"
    assert (run.requested_by, run.domain, run.reason) == (trainer, "medicine", "new field")
    assert TrainConfig.from_mapping(run.config) == TrainConfig(rank=4)


def test_every_wrong_value_is_told_at_its_field(tina, db):
    response = tina.post(REQUEST, config_data(rank=0, dropout=2, reason=""))
    assert response.status_code == 400
    errors = response.context["form"].errors
    assert set(errors) == {"rank", "dropout", "reason"}
    assert errors["rank"] == ["0 is not between 1 and 256"]
    assert not TrainingRun.objects.exists()


def test_too_few_verdicts_are_refused_in_words_and_what_was_typed_stays(tina, db):
    response = tina.post(REQUEST, config_data(reason="try"))
    assert response.status_code == 409
    assert "There are 0 accepted verdicts to train on" in text_of(response)
    assert "try" in response.content.decode()


def test_a_second_click_is_told_which_run_does_the_same(tina, three_verdicts):
    tina.post(REQUEST, config_data())
    run = TrainingRun.objects.get()
    again = tina.post(REQUEST, config_data())
    assert again.status_code == 409
    assert f"Run {run.pk} is queued and does the same" in text_of(again)
    assert TrainingRun.objects.get() == run


def test_the_form_starts_from_a_preset_or_a_former_run(tina, trainer):
    assert tina.get(f"{REQUEST}?preset=seed").context["form"]["epochs"].value() == 3
    run = make_run(trainer, domain="law")
    TrainingRun.objects.update(config=TrainConfig(rank=32).to_dict())
    form = tina.get(f"{REQUEST}?like={run.pk}").context["form"]
    assert (form["rank"].value(), form["domain"].value()) == (32, "law")


def test_a_wrong_preset_is_told(tina, db):
    response = tina.post(REQUEST, config_data(preset="nonsense"))
    assert response.status_code == 400


def test_only_trainers_request_training(rita, db):
    assert rita.get(REQUEST).status_code == 403
    assert rita.post(REQUEST, config_data()).status_code == 403


def test_the_form_has_every_field_of_the_config_and_explains_it():
    names = {field.name for field in fields(TrainConfig)} - {"preset"}
    assert set(CONFIG_HELP) == names
    shown = [
        field.name for _, members in RequestTrainingForm().config_groups() for field in members
    ]
    assert sorted(shown) == sorted(names)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_form_sent_back_unchanged_is_the_preset(preset):
    form = RequestTrainingForm(preset=preset)
    data = {name: form[name].value() for name in form.config_names}
    sent = RequestTrainingForm(
        {"preset": preset, "scope": "user", "reason": "x"}
        | {name: value for name, value in data.items() if value is not False}
    )
    assert sent.is_valid(), sent.errors
    assert TrainConfig.from_mapping(sent.cleaned_data["config"]) == PRESETS[preset]


# --- Versions -------------------------------------------------------------------------------------


def test_the_list_tells_what_serves_what_served_and_what_never_did(rita, releaser, make_version):
    first = make_version()
    promote(first, releaser)
    promote(make_version(against=first), releaser)
    make_version()
    page = text_of(rita.get(VERSIONS))
    assert [page.index(state) for state in ("never served", "serving", "was serving")] == sorted(
        page.index(state) for state in ("never served", "serving", "was serving")
    )
    assert "(n = 200)" in page


def test_a_version_shows_its_evidence_with_every_n(rita, make_version):
    version = make_version()
    page = text_of(rita.get(url(version)))
    assert "v1 is better than the base." in page
    assert "on 200 pairs from 40 sources" in page
    assert "95 % interval" in page
    assert "on 600 general pairs the base has 72.0 % right and v1 71.0 %" in page
    assert "role swap" in page
    assert "Two of nine wards stopped using the drug." in page
    assert "below the wished-for 85 %" in page
    assert "fitted on 200 out-of-fold pairs" in page


def test_a_version_says_how_sure_its_interval_is(rita, releaser, make_version):
    first = make_version()
    promote(first, releaser)
    version = make_version(against=first)
    stored = version.evaluations.get()
    surer = comparison(attempt=4).to_dict()
    stored.figures["against_incumbent"] = surer
    stored.save()
    page = text_of(rita.get(url(version)))
    low, high = (f"{100 * surer['accuracy'][end]:+.1f}" for end in ("low", "high"))
    assert f"99.6 % interval {low} to {high} points" in page
    assert f"Accuracy (99.6 % interval {low}" in page
    assert "Accuracy (95 % interval" in page  # against the base
    assert "(99.6 % against v1, 95 % against the base)" in page
    assert "99.6 % interval" in text_of(rita.get(f"{VERSIONS}{version.pk}/promote/"))


def test_an_evaluation_of_before_is_of_95_percent(rita, make_version):
    version = make_version(against=make_version())
    stored = version.evaluations.get()
    for compared in ("against_incumbent", "against_base"):
        for name in ("confidence", "high_95"):
            del stored.figures[compared]["accuracy"][name]
    stored.save()
    page = text_of(rita.get(url(version)))
    assert "95 % interval" in page
    assert "intervals over sources and claims (95 %)" in page


def test_a_loss_that_a_surer_interval_does_not_exclude_is_explained(rita, make_version):
    version = make_version(verdict="worse")
    stored = version.evaluations.get()
    surer = {"estimate": -0.05, "low": -0.11, "high": 0.01, "high_95": -0.012, "confidence": 0.9975}
    stored.figures["against_incumbent"]["accuracy"] |= surer
    stored.save()
    page = text_of(rita.get(url(version)))
    assert "99.8 % interval −11.0 to +1.0 points" in page
    assert "A loss is judged by the 95 % interval, however many comparisons there were" in page
    assert "that ends at −1.2 points" in page


@pytest.mark.parametrize(
    ("attempt", "said"), [(1, "95 %"), (2, "97.5 %"), (4, "99.6 %"), (17, "99.98 %")]
)
def test_confidence_is_never_certainty(attempt, said):
    assert confidence(1 - 2 * metrics.spent_level(attempt)) == said


def test_a_version_shows_what_flips_bound(rita, make_version):
    page = text_of(rita.get(url(make_version())))
    assert "On 3180 general pairs without labels v1 answers 4.1 % otherwise than the base" in page
    assert "lost at most 5.2 points" in page


@pytest.mark.parametrize(
    ("wealth", "peak", "words"),
    [
        (7.25, 31.4, "Confirmed: on 90 of them, from 40 sources"),
        (2.5, 3.0, "Not confirmed so far: on 90 of them, from 40 sources"),
    ],
)
def test_a_version_says_whether_later_verdicts_confirm_it(rita, make_version, wealth, peak, words):
    version = make_version()
    bet = {"rows": 90, "pages": 40, "disagreements": 30, "wealth": wealth, "peak": peak}
    later = {"n": 120, "accuracy": 0.6, "brier": 0.5, "ece": 0.1, "confirmation": bet}
    later["confirmation"]["confirmed"] = peak >= 20
    version.evaluations.update(later=later)
    page = text_of(rita.get(url(version)))
    assert words in page
    assert f"e-value {'31.4' if peak >= 20 else 'of 2.5'}" in page


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_version_says_why_verdicts_in_mixed_order_confirm_nothing(rita, make_version, confirmed):
    """What was confirmed before they were mixed stays so."""
    version = make_version()
    bet = {"rows": 90, "pages": 40, "disagreements": 30, "wealth": 2.5, "dropped": 0.432}
    bet |= {"peak": 31.4 if confirmed else 3.0, "confirmed": confirmed}
    later = {"n": 120, "accuracy": 0.6, "brier": 0.5, "ece": 0.1, "confirmation": bet}
    version.evaluations.update(later=later)
    page = text_of(rita.get(url(version)))
    why = (
        "Whether they confirm v1 is not said: 43.2 % of what it answers otherwise than the base "
        "could not count, because verdicts on pages or claims that were already counted came in "
        "between others; reviewing page by page lets more of them count."
    )
    assert (why in page) is not confirmed
    assert ("Confirmed: on 90 of them" in page) is confirmed
    assert "Not confirmed so far" not in page


def test_a_version_says_nothing_of_a_bet_that_nobody_could_make(rita, make_version):
    version = make_version()
    bet = {"rows": 0, "pages": 0, "disagreements": 0, "wealth": 1.0, "peak": 1.0}
    later = {"n": 120, "accuracy": 0.6, "brier": 0.5, "ece": 0.1}
    version.evaluations.update(later=later | {"confirmation": bet | {"confirmed": False}})
    page = text_of(rita.get(url(version)))
    assert "On 120 pairs reviewed after the snapshot" in page
    assert "onfirmed" not in page


def test_a_version_shows_how_far_its_probabilities_can_be_trusted(rita, trainer, make_version):
    version = make_version()
    before = text_of(rita.get(url(version)))
    assert "Brier score 0.500 0.400" in before
    assert "Brier skill" not in before  # a calibrator of an earlier release
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([1, 1, 1], 200)
    labels = rng.integers(0, 3, 200)
    reliability = {
        "ece_debiased": 0.021,
        "ece_floor": 0.034,
        "brier_skill": 0.125,
        "labels": metrics.label_reliability(probabilities, labels),
    }
    fit_again(
        version,
        trainer,
        method="bcts",
        reliability_before=reliability | {"brier_skill": -0.25},
        reliability_after=reliability,
        not_tried={"platt": "needs 180 rows"},
    )
    response = rita.get(url(version))
    page = text_of(response)
    assert "Bias-corrected temperature scaling, fitted on 400 out-of-fold pairs" in page
    assert "the figures are of the 300 whose sampling probability is known" in page
    assert "ECE, debiased 0.021 0.021" in page
    assert "ECE of a perfect model here 0.034 0.034" in page
    assert "Brier skill −0.250 +0.125" in page
    assert "platt needs 180 rows" in page
    drawn = response.context["label_reliability_figure"]["data"]
    assert [line["name"] for line in drawn] == ["perfect", "supports", "refutes", "neutral"]


def test_a_page_of_changed_answers_says_that_losses_come_first(rita, make_version, monkeypatch):
    version = make_version()
    page = text_of(rita.get(url(version)))
    assert "1 pair would be answered differently. Lost and gained ones take turns" in page
    monkeypatch.setattr(evidence, "SHOWN_FLIPS", 1)
    version.evaluations.update(flips=version.evaluations.get().flips * 3)
    page = text_of(rita.get(url(version)))
    assert "3 pairs would be answered differently; 1 is shown." in page


def test_an_inconclusive_verdict_says_how_many_more_pairs_would_decide(rita, make_version):
    version = make_version(verdict="inconclusive")
    text = text_of(rita.get(url(version)))
    assert "really is 5 points better, about 140 more reviewed pairs" in text
    assert "would show it four times in five." in text


def test_parts_are_shown_and_what_is_surely_lost_is_marked(rita, make_version):
    version = make_version()
    stored = version.evaluations.get().figures
    gain = stored["against_incumbent"]["accuracy"]
    part = {"rows": 71, "groups": 30, "a": 0.523, "b": 0.465, "difference": gain, "enough": True}
    few = part | {"name": "policy <b>", "rows": 4, "enough": False, "lost": False}
    slices = {"label": [part | {"name": "refutes", "lost": True}], "domain": [few]}
    version.evaluations.update(figures=stored | {"slices": slices})
    for page in (rita.get(url(version)), rita.get(url(version, "promote"))):
        assert "Where it gains and loses" in page.text
        assert "Domain policy &lt;b&gt;" in page.text
        assert re.search(r"Label refutes \([+−][\d.]+ to [+−][\d.]+\) 71 30", text_of(page))
        assert "(too few to tell) 4 30" in text_of(page)
        assert page.text.count('<td class="number bad">+') == 1  # the one that is lost


def test_no_line_ends_between_a_number_and_its_percent_sign(rita, make_version):
    page = rita.get(url(make_version())).text
    sentence = re.search(r"<p>(Out of fold.*?)</p>", page)[1]
    assert "\N{NO-BREAK SPACE}%" in sentence
    assert not re.search(r"\d %", sentence)


def test_evidence_against_what_no_longer_serves_is_marked(rita, releaser, make_version):
    first, second = make_version(), make_version()
    promote(first, releaser)
    page = text_of(rita.get(url(second)))
    assert "This compares it with the base, which no longer serves." in page
    third = make_version(against=first)
    assert "This compares it" not in text_of(rita.get(url(third)))
    third.evaluations.update(incumbent_calibration=second.calibrations.first())
    page = text_of(rita.get(url(third)))
    assert f"This compares it with {first.name} as it was calibrated before." in page


def test_a_version_without_any_figures_still_has_a_page(rita, make_version):
    version = make_version()
    version.evaluations.update(figures={}, per_label={}, guard={}, flips=[])
    assert "no rows of known probability" in text_of(rita.get(url(version)))


def test_a_version_is_evaluated_again(tina, make_version):
    version = make_version()
    tina.post(url(version, "evaluate"))
    run = TrainingRun.objects.get(kind="shadow")
    assert run.version == version


def test_evaluating_is_for_post_and_for_trainers(tina, rita, make_version):
    version = make_version()
    assert tina.get(url(version, "evaluate")).status_code == 405
    assert rita.post(url(version, "evaluate")).status_code == 403


# --- Promote --------------------------------------------------------------------------------------


def confirm(client, version, **changes):
    form = client.get(url(version, "promote")).context["form"]
    hidden = {field.html_name: field.value() for field in form.hidden_fields()}
    data = {name: value for name, value in hidden.items() if value is not None}
    return client.post(url(version, "promote"), data | {"reason": "measured better"} | changes)


def test_the_confirmation_shows_what_changes_and_changes_nothing(rita, make_version):
    version = make_version()
    response = rita.get(url(version, "promote"))
    page = text_of(response)
    assert "Answered by the base v1" in page
    assert "Accuracy" in page
    assert "Every ward stopped using the drug." in page
    assert response.context["form"]["expected_revision"].value() == 0
    assert registry.serving().version is None


def test_who_decides_reads_each_label_and_how_old_the_evidence_is(rita, make_version):
    version = make_version()
    evaluation = version.evaluations.get()
    labels = evaluation.per_label
    labels["refutes"]["incumbent"]["recall"] = 0.523
    labels["refutes"]["candidate"]["recall"] = 0.465
    # The run ended long after it had frozen its verdicts: those accepted meanwhile are not in it.
    ended = timezone.now() + timedelta(hours=1)
    version.evaluations.update(per_label=labels, created_at=ended)

    response = rita.get(url(version, "promote"))
    assert "52.3 % → 46.5 %" in text_of(response)
    assert "No verdict was accepted since." in text_of(response)

    accept(2)
    response = rita.get(url(version, "promote"))
    assert "2 verdicts were accepted since: a new shadow evaluation" in text_of(response)
    assert f'href="{url(version)}?evaluation={evaluation.pk}"' in response.text


def test_a_releaser_promotes_with_a_reason(rita, releaser, make_version):
    version = make_version()
    response = confirm(rita, version)
    assert response.url == url(version)
    assert registry.serving().version == version
    entry = Promotion.objects.get()
    assert (entry.by, entry.reason) == (releaser, "measured better")


def test_without_a_reason_nothing_is_promoted(rita, make_version):
    response = confirm(rita, make_version(), reason=" ")
    assert response.status_code == 400
    assert "reason" in response.context["form"].errors
    assert registry.serving().version is None


@pytest.mark.parametrize("page", ["promote", "rollback", "request"])
def test_a_form_sent_back_says_so_and_opens_at_the_first_field_to_correct(
    rita, tina, three_promoted, page
):
    if page == "promote":
        response = confirm(rita, make_comparable(three_promoted), reason=" ")
    elif page == "rollback":
        response = rita.post(ROLLBACK, {"expected_revision": 3, "reason": " "})
    else:
        response = tina.post(REQUEST, config_data(reason=" ", rank=0))
    html = html_of(response)
    assert re.search(r'<p class="errornote" role="alert">Please correct the fields? marked', html)
    [focused] = re.findall(r"<(?:input|select|textarea)[^>]* autofocus[^>]*>", html)
    assert 'name="reason"' in focused


def make_comparable(versions):
    """The first of them, compared with the last, which serves."""
    first, *_, last = versions
    calibration = last.calibrations.first()
    first.evaluations.update(incumbent=last, incumbent_calibration=calibration)
    return first


@pytest.mark.parametrize("page", ["promote", "rollback"])
def test_a_browser_asks_for_the_reason_before_it_sends_a_decision(rita, three_promoted, page):
    first = make_comparable(three_promoted)
    html = html_of(rita.get(url(first, "promote") if page == "promote" else ROLLBACK))
    form = re.search(r'<form class="stacked".*?</form>', html, flags=re.S)[0]
    assert "novalidate" not in form
    assert re.search(r'<textarea name="reason"[^>]* required', form)


def test_a_stale_confirmation_is_refused_naming_who_was_faster(rita, administrator, make_version):
    first, second = make_version(), make_version()
    shown = rita.get(url(second, "promote")).context["form"]["expected_revision"].value()
    promote(first, administrator)
    response = rita.post(
        url(second, "promote"), {"expected_revision": shown, "reason": "measured better"}
    )
    assert response.status_code == 409
    page = text_of(response)
    assert "ada promoted v1" in page
    assert registry.serving().version == first


def test_inconclusive_evidence_needs_the_box_ticked(rita, make_version):
    version = make_version(verdict="inconclusive")
    assert set(rita.get(url(version, "promote")).context["form"].fields) == {
        "expected_revision",
        "evidence_id",
        "calibration_id",
        "reason",
        "acknowledge",
    }
    assert confirm(rita, version).status_code == 409
    assert registry.serving().version is None
    confirm(rita, version, acknowledge="on")
    assert registry.serving().version == version
    assert Promotion.objects.get().acknowledged


def fit_again(version, by, **changes):
    """A calibrator fitted later than the one the version was measured with."""
    fitted = version.calibrations.first()
    made = {
        "method": "platt",
        "fitted_rows": 400,
        "rows": 300,
        "replaces": version.calibrations.first(),
        "replaced": {"brier": 0.42, "ece": 0.06, "log_loss": 0.95},
    }
    fitted.pk, fitted.number, fitted._state.adding = None, fitted.number + 1, True
    fitted.created_by = by
    for name, value in {**made, **changes}.items():
        setattr(fitted, name, value)
    fitted.save()
    return fitted


def test_the_confirmation_names_the_calibrator_that_was_measured(rita, trainer, make_version):
    version = make_version()
    fit_again(version, trainer)
    page = text_of(rita.get(url(version, "promote")))
    assert "temperature scaling on 200 pairs" in page
    assert "Platt" not in page


def test_what_is_confirmed_is_the_evidence_that_was_shown(rita, make_version):
    version = make_version()
    form = rita.get(url(version, "promote")).context["form"]
    shown = form["evidence_id"].value()
    assert shown == version.evaluations.get().pk
    newer = version.evaluations.get()
    newer.pk, newer._state.adding, newer.verdict = None, True, "not_worse"
    newer.save()
    response = confirm(rita, version, evidence_id=shown)
    assert response.status_code == 409
    assert "was evaluated against the base again since you looked" in text_of(response)
    assert registry.serving().version is None
    assert response.context["form"]["evidence_id"].value() == newer.pk


def test_the_version_that_serves_is_given_its_newer_calibrator(
    rita, releaser, trainer, make_version
):
    version = make_version()
    promote(version, releaser)
    assert "Use the newer calibrator" not in text_of(rita.get(url(version)))
    assert "v1 already serves" in text_of(rita.get(url(version, "promote")))
    newer = fit_again(version, trainer)
    assert "Use the newer calibrator …" in text_of(rita.get(url(version)))
    page = text_of(rita.get(url(version, "promote")))
    assert "Use the newer calibrator of v1?" in page
    assert "Both on 300 out-of-fold pairs" in page
    # Its own record says 0.4, 0.05 and 0.9, of other pairs.
    assert "v1/c1 (temperature) 0.420 0.060 0.950" in page
    assert "v1/c2 (platt) 0.400 0.050 0.900" in page
    confirm(rita, version)
    assert registry.serving().calibration == newer
    assert "v1: calibrator c1 → c2" in text_of(rita.get(LEDGER))
    back(rita)
    assert registry.serving().calibration.number == 1


def test_a_newer_calibrator_that_is_not_better_needs_an_override(
    rita, releaser, trainer, make_version
):
    version = make_version()
    promote(version, releaser)
    fit_again(version, trainer, brier_after=0.45)
    page = text_of(rita.get(url(version, "promote")))
    assert "not shown to be as good. Its Brier score on 300 pairs is 0.4500, now 0.4200." in page
    assert confirm(rita, version).status_code == 409
    confirm(rita, version, override="on")
    assert registry.serving().calibration.number == 2


def test_a_newer_calibrator_without_figures_to_compare_shows_none(
    rita, releaser, trainer, make_version
):
    version = make_version()
    promote(version, releaser)
    fit_again(version, trainer, replaces=None)
    page = text_of(rita.get(url(version, "promote")))
    assert "Nobody has compared it with v1/c1 (temperature) on the same pairs" in page
    assert "v1/c1 (temperature) – – –" in page
    assert "override" in rita.get(url(version, "promote")).context["form"].fields


def test_a_worse_version_needs_an_override(rita, make_version):
    version = make_version(verdict="worse")
    refused = confirm(rita, version)
    assert "override the gate" in text_of(refused)
    confirm(rita, version, override="on", reason="the old one is withdrawn by law")
    assert Promotion.objects.get().overridden


def test_without_evidence_against_what_serves_there_is_nothing_to_confirm(
    rita, releaser, make_version
):
    first, second = make_version(), make_version()
    promote(first, releaser)
    page = rita.get(url(second, "promote"))
    assert "Nothing compares v2 with v1" in text_of(page)
    assert 'name="reason"' not in page.content.decode()


def test_only_releasers_promote_and_roll_back(tina, curt, make_version):
    version = make_version()
    for client in (tina, curt):
        assert client.get(url(version, "promote")).status_code == 403
        assert client.post(url(version, "promote")).status_code == 403
        assert client.get(ROLLBACK).status_code == 403
        assert client.post(ROLLBACK).status_code == 403
    assert "Promote" not in text_of(tina.get(VERSIONS))


# --- Roll back, the ledger ------------------------------------------------------------------------


def back(client, to=""):
    form = client.get(ROLLBACK, {"to": to}).context["form"]
    data = {"expected_revision": form["expected_revision"].value(), "reason": "complaints"}
    return client.post(f"{ROLLBACK}?to={to}", data)


@pytest.fixture
def three_promoted(make_version, releaser):
    first = make_version()
    promote(first, releaser)
    second = make_version(against=first)
    promote(second, releaser)
    third = make_version(against=second)
    promote(third, releaser)
    return first, second, third


def test_rolling_back_restores_the_one_before(rita, three_promoted):
    assert "Roll back to v2?" in text_of(rita.get(ROLLBACK))
    back(rita)
    assert registry.serving().version == three_promoted[1]


def test_rolling_back_to_a_chosen_version_and_to_the_base(rita, three_promoted):
    back(rita, to="v1")
    assert registry.serving().version == three_promoted[0]
    back(rita, to="base")
    assert registry.serving().version is None


def test_a_stale_rollback_is_refused(rita, administrator, three_promoted):
    shown = rita.get(ROLLBACK).context["form"]["expected_revision"].value()
    registry.rollback(by=administrator, reason="first")
    response = rita.post(ROLLBACK, {"expected_revision": shown, "reason": "second"})
    assert response.status_code == 409
    assert "ada rolled back to v2" in text_of(response)
    assert registry.serving().version == three_promoted[1]


def test_the_confirmation_of_a_rollback_names_the_calibrator_that_comes_back(
    rita, releaser, trainer, make_version
):
    version = make_version()
    promote(version, releaser)
    fit_again(version, trainer)
    confirm(rita, version)
    page = text_of(rita.get(ROLLBACK))
    assert "Roll back to v1?" in page
    assert "Platt scaling on 400 pairs temperature scaling on 200 pairs" in page


def test_there_is_nowhere_to_go_back_to_from_the_base(rita, db):
    assert "The base already serves." in text_of(rita.get(ROLLBACK))


def test_nothing_is_said_to_change_where_nothing_would(rita, releaser, make_version):
    version = make_version()
    promote(version, releaser)
    assert "Afterwards" not in text_of(rita.get(url(version, "promote")))
    assert "Afterwards" not in text_of(rita.get(ROLLBACK, {"to": "v1"}))
    back(rita)
    page = text_of(rita.get(ROLLBACK))
    assert "The base already serves. Choose what is to answer instead." in page
    assert "Afterwards" not in page
    assert "nothing to roll back to" not in page
    assert "Answered by the base v1" in text_of(rita.get(ROLLBACK, {"to": "v1"}))


def places(response):
    """What one can choose on the page, the chosen one in brackets."""
    links = re.findall(
        r'<a href="\?to=[^"]*"\s*(aria-current="true")?>([^<]*)</a>', html_of(response)
    )
    return [f"[{name}]" if chosen else name for chosen, name in links]


def test_every_place_to_roll_back_to_is_offered_once(rita, releaser, make_version):
    first = make_version()
    promote(first, releaser)
    assert places(rita.get(ROLLBACK)) == ["[the base, which answered before]"]
    promote(make_version(against=first), releaser)
    assert places(rita.get(ROLLBACK)) == ["[v1, which answered before]", "the base"]
    assert places(rita.get(ROLLBACK, {"to": "v1"})) == places(rita.get(ROLLBACK))
    assert places(rita.get(ROLLBACK, {"to": "base"})) == [
        "v1, which answered before",
        "[the base]",
    ]
    back(rita, to="base")
    assert places(rita.get(ROLLBACK)) == ["v1", "v2"]


def test_places_of_one_version_are_told_apart_by_their_calibrators(
    rita, releaser, trainer, make_version
):
    version = make_version()
    promote(version, releaser)
    fit_again(version, trainer)
    confirm(rita, version)
    older, newer = "v1/c1 (temperature)", "v1/c2 (platt)"
    assert places(rita.get(ROLLBACK)) == [f"[{older}, which answered before]", "the base"]
    back(rita)
    assert places(rita.get(ROLLBACK))[1] == newer


def test_a_version_that_served_says_when_to_promote_it_and_when_to_roll_back(
    rita, releaser, make_version
):
    version = make_version()
    assert "Rolling back brings it back" not in text_of(rita.get(url(version)))
    promote(version, releaser)
    back(rita)
    page = text_of(rita.get(url(version)))
    assert "Rolling back brings it back exactly as it answered then" in page
    assert "Promoting asks for a comparison with the base, which serves now" in page


@pytest.mark.parametrize("to", ["v9", "../etc", "2"])
def test_a_version_that_never_served_is_not_rolled_back_to(rita, make_version, to):
    make_version(), make_version()
    assert rita.get(ROLLBACK, {"to": to}).status_code == 404


def test_the_ledger_is_called_so_everywhere(rita, ada, three_promoted):
    assert ">Ledger</a>" in rita.get(INDEX).content.decode()
    assert "Promotions" not in text_of(ada.get(INDEX))
    assert "Ledger" in text_of(rita.get(ROLLBACK))


def test_the_lines_of_the_ledger_are_counted_as_entries(rita, three_promoted):
    assert "3 entries" in text_of(rita.get(LEDGER))
    back(rita)
    assert "1 entry" in text_of(rita.get(LEDGER, {"q": "complaints"}))


def test_the_ledger_tells_who_what_why_and_on_what_evidence(rita, three_promoted):
    back(rita)
    page = text_of(rita.get(LEDGER))
    assert "v3 → v2" in page
    assert "complaints" in page
    assert "the base → v1" in page
    assert "better" in page


@pytest.mark.parametrize("path", [VERSIONS, LEDGER, RUNS])
def test_a_list_reads_as_often_for_many_rows_as_for_one_and_nothing_long(
    rita, releaser, make_version, path
):
    def asked():
        with CaptureQueriesContext(connection) as found:
            assert rita.get(path).status_code == 200
        return [query["sql"] for query in found]

    previous = make_version()
    promote(previous, releaser)
    asked()  # content types and the like are read once
    once = asked()
    for _ in range(3):
        previous = make_version(against=previous)
        promote(previous, releaser)
    often = asked()
    assert len(often) == len(once)
    for column in ("flips", "metrics", "sibling_digests", "log_tail", "loss_curve"):
        assert not [sql for sql in often if f'"{column}"' in sql], column


# --- The queue ------------------------------------------------------------------------------------


def test_the_queue_page_shows_what_waits(tina, trainer, three_verdicts):
    run = training.request(by=trainer, reason="now")
    page = text_of(tina.get(f"{RUNS}queue/"))
    assert f"training adapters_app.tasks.run {run.pk} not yet" in page
    assert "adapters_app.tasks.reconcile" in page
    assert "No worker is running." in page


def test_the_queue_page_shows_which_base_the_web_processes_answer_with(tina, db):
    assert "None has loaded a base" in text_of(tina.get(f"{RUNS}queue/"))
    liveness.saw_server("web-1:7", base_name="minilm-nli", base_fingerprint="abcdef123456789")
    page = text_of(tina.get(f"{RUNS}queue/"))
    assert "web-1:7 minilm-nli abcdef123456" in page


def test_the_queue_library_has_no_pages_of_its_own(ada, db):
    assert {model._meta.app_label for model in admin.site._registry} <= {
        "auth",
        "adapters_app",
        "corrections",
    }
    assert ada.get("/admin/django_q/schedule/").status_code == 404


# --- Nothing writes around the domain's functions -------------------------------------------------


@pytest.mark.parametrize("model", [TrainingRun, AdapterVersion, Promotion])
@pytest.mark.parametrize("page", ["add", "1/delete", "1/change"])
def test_not_even_an_administrator_writes_rows(ada, three_promoted, model, page):
    before = list(model.objects.order_by("pk").values())
    path = f"/admin/adapters_app/{model._meta.model_name}/{page}/"
    response = ada.post(path, {"post": "yes", "reason": "forged", "number": 9})
    assert response.status_code in {302, 403, 404, 405}
    assert list(model.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("model", [Serving, Snapshot, ShadowEvaluation, CalibrationEvaluation])
def test_other_records_have_no_editor(model):
    assert not admin.site.is_registered(model)


@pytest.mark.parametrize("path", [f"{RUNS}x/change/", f"{VERSIONS}99/change/", f"{RUNS}9/change/"])
def test_what_is_not_there_is_not_found(ada, db, path):
    assert ada.get(path).status_code == 404


def test_a_caller_sees_no_figures(client, cast):
    client.force_login(cast["alice"])
    assert client.get(INDEX).status_code == 200
    assert "Revision" not in text_of(client.get(INDEX))
    for path in (RUNS, VERSIONS, LEDGER, f"{RUNS}queue/", REQUEST, ROLLBACK):
        assert client.get(path).status_code == 403


# --- Markup ---------------------------------------------------------------------------------------


class Markup(HTMLParser):
    """Collects what a content security policy or a screen reader would object to."""

    def __init__(self):
        super().__init__()
        self.faults, self.labelled, self.controls = [], set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "script" and "src" not in found and found.get("type") != "application/json":
            self.faults.append("inline script")
        if tag in {"script", "link", "img"}:
            address = found.get("src") or found.get("href") or ""
            if address.startswith(("http:", "https:", "//")):
                self.faults.append(f"foreign {address}")
        self.faults += [
            f"{tag} {name}" for name in found if name.startswith("on") or name == "style"
        ]
        if tag == "label":
            self.labelled.add(found.get("for"))
        if tag in {"input", "select", "textarea"} and found.get("type") not in {"hidden", "submit"}:
            self.controls.append(found)
        if tag == "th" and "scope" not in found and "column" not in found.get("class", ""):
            self.faults.append("th without scope")

    def unlabelled(self):
        return [
            control
            for control in self.controls
            if control.get("id") not in self.labelled and "aria-label" not in control
        ]


@pytest.fixture
def pages(ada, three_promoted, trainer):
    run = running(trainer, stage="fitting", loss_curve=[[1, 1.0]])
    return {
        path: ada.get(path)
        for path in (
            INDEX,
            REQUEST,
            ROLLBACK,
            f"{RUNS}{run.pk}/change/",
            f"{RUNS}queue/",
            url(three_promoted[0]),
            url(three_promoted[0], "promote"),
        )
    }


def test_pages_need_no_inline_script_and_no_other_host(pages):
    for path, response in pages.items():
        markup = Markup()
        markup.feed(response.content.decode())
        assert not markup.faults, path
        assert not markup.unlabelled(), path


# --- Labels in doubt ------------------------------------------------------------------------------

LABELS_IN_DOUBT = f"{VERSIONS}labels/"


@pytest.fixture
def doubted(on_tiny, trainer, tiny_model):
    """Three verdicts, two of them doubted by v1, and what v1 says of who gave them."""
    rows = accept(3, pages=3)
    digest = storage.put(on_tiny / write_adapter(on_tiny, tiny_model, seed=1))
    register(
        trainer,
        1,
        digest,
        tiny_model,
        metrics={
            "suspicious": [
                {
                    "correction_id": row.pk,
                    "label": row.correct_label,
                    "predicted": "neutral",
                    "probability_of_label": 0.031,
                }
                for row in rows[:2]
            ],
            "annotators": [
                {
                    "annotator": "samuel",
                    "n": 40,
                    "confirmed": 0.975,
                    "expected": 0.4125,
                    "agreement": 0.4,
                    "careless": {"mean": 0.71, "low": 0.52, "high": 0.88},
                }
            ],
        },
    )
    return rows


def test_a_curator_reads_which_labels_and_whose_are_in_doubt(curt, doubted):
    response = curt.get(LABELS_IN_DOUBT)
    page = text_of(response)
    assert "samuel 40 97.5 % 41.2 % 40.0 % 71.0 % (52 % to 88 %)" in page
    assert f"#{doubted[0].pk} study 0 of the drug the drug is safe in 0 supports 3.1 %" in page
    listed = curt.get(response.context["review_url"]).context["cl"].result_list
    assert [row.pk for row in listed] == [doubted[0].pk, doubted[1].pk]  # as doubted
    assert "Labels in doubt" in text_of(curt.get(INDEX))


def test_who_may_read_corrections_reads_the_doubtful_ones_on_the_versions_page(ada, doubted):
    page = text_of(ada.get(url(newest())))
    assert f"#{doubted[0].pk} study 0 of the drug the drug is safe in 0 supports 3.1 %" in page


def test_who_may_not_read_corrections_is_told_how_many_are_in_doubt(rita, tina, doubted):
    for client in (rita, tina):
        page = text_of(client.get(url(newest())))
        assert "doubt 2 of the 200 verdicts" in page
        assert f"#{doubted[0].pk}" not in page
        assert doubted[0].premise not in page
        assert doubted[0].hypothesis not in page


def test_a_doubt_that_was_settled_says_so(curt, ada, curator, doubted):
    intake.review([doubted[0].pk], by=curator, status="rejected")
    Correction.objects.filter(pk=doubted[1].pk).update(
        correct_label="supports", verdict="corrected"
    )
    for page in (text_of(curt.get(LABELS_IN_DOUBT)), text_of(ada.get(url(newest())))):
        assert "supports (now rejected) 3.1 %" in page
        assert "refutes (now supports) 3.1 %" in page


def test_what_was_looked_at_again_makes_room_for_the_next_doubt(curt, curator, doubted):
    first, second = doubted[0], doubted[1]
    assert curt.get(LABELS_IN_DOUBT).context["review_url"].endswith(f"{first.pk}%2C{second.pk}")

    # As the list's key does on a row that is accepted and found to be right.
    reviewed = f"/admin/corrections/correction/{first.pk}/review/"
    curt.post(reviewed, {"status": "accepted", "seen_status": "accepted"})
    response = curt.get(LABELS_IN_DOUBT)
    assert [doubt.correction_id for doubt in response.context["doubts"]] == [second.pk, first.pk]
    assert "supports (looked at again)" in text_of(response)
    assert response.context["review_url"].endswith(f"={second.pk}")

    intake.review([second.pk], by=curator, status="pending")
    assert "Review these 1" in text_of(curt.get(LABELS_IN_DOUBT))  # it waits for somebody
    intake.review([second.pk], by=curator, status="accepted")
    page = text_of(curt.get(LABELS_IN_DOUBT))
    assert "Review these" not in page
    assert "Somebody has looked at all of them since." in page


def newest():
    return AdapterVersion.objects.get(number=1)


def test_what_is_said_of_annotators_is_for_curators_alone(rita, tina, doubted):
    for other in (rita, tina):
        assert other.get(LABELS_IN_DOUBT).status_code == 403
        assert "samuel" not in text_of(other.get(url(newest())))
        assert "Labels in doubt" not in text_of(other.get(INDEX))
        assert "annotators" not in other.get("/api/v1/adapters/v1").json()["metrics"]


def test_before_any_training_no_label_is_in_doubt(curt):
    assert "A training fills this page" in text_of(curt.get(LABELS_IN_DOUBT))


# --- How much more? -------------------------------------------------------------------------------


@pytest.fixture
def curve(trainer, make_version):
    """A learning curve of the snapshot that v1 learnt from."""
    projection = {
        "target": 0.6,
        "now": {"median": 0.52, "low": 0.5, "high": 0.54},
        "chance": 0.7,
        "needed": {"median": 380.0, "low": 300.0, "high": None},
        "sentence": "About 180 more verdicts to reach an accuracy of 60.0 %.",
        "ahead": [{"verdicts": n, "median": 0.5, "low": 0.4, "high": 0.6} for n in (0, 800)],
    }
    return LearningCurve.objects.create(
        snapshot=make_version().snapshot,
        base_name="minilm-nli",
        base_fingerprint="7" * 64,
        config=TrainConfig().to_dict(),
        rows=190,
        groups=40,
        points=[
            {
                "verdicts": size,
                "accuracy": {"value": 0.4 + size / 1000, "error": 0.02},
                "macro_f1": {"value": 0.3, "error": 0.03},
            }
            for size in (0, 80, 160)
        ],
        projections={
            "accuracy": projection,
            "macro_f1": projection | {"sentence": "More of this kind will not get there."},
        },
        seconds=192.0,
        created_by=trainer,
    )


def test_a_curve_says_what_more_verdicts_would_bring(rita, curve):
    listed = text_of(rita.get("/admin/adapters_app/learningcurve/"))
    assert "200 verdicts About 180 more verdicts to reach an accuracy of 60.0 %. tina" in listed
    response = rita.get(f"/admin/adapters_app/learningcurve/{curve.pk}/change/")
    page = text_of(response)
    assert "More of this kind will not get there." in page
    assert "it took 3 min 12 s" in page
    assert "the base 40.0 % ± 2.0 % 30.0 % ± 3.0 %" in page
    assert "160 56.0 % ± 2.0 %" in page
    assert response.context["accuracy_figure"]["data"]
    assert "About 180 more verdicts" in text_of(rita.get(url(newest())))


def test_a_list_without_curves_says_how_to_measure_one(rita, db):
    page = text_of(rita.get("/admin/adapters_app/learningcurve/"))
    assert "manage.py learning_curve measures one" in page


def test_curves_are_for_those_who_see_releases(curt, curve):
    assert curt.get("/admin/adapters_app/learningcurve/").status_code == 403
    assert curt.get(f"/admin/adapters_app/learningcurve/{curve.pk}/change/").status_code == 403
