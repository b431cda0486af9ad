"""When the policy says to train, and how it explains itself."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from adapters_app import tasks, training, triggers
from adapters_app.models import PredictionTally, TrainingRun
from corrections.acting import system_user
from corrections.models import Correction
from tests.verdicts import accept
from tests.versions import promote

pytest_plugins = ("tests.serving",)
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def policy(settings):
    settings.LYRA_TRIGGER_MIN_CORRECTED = 40
    settings.LYRA_TRIGGER_MIN_RATE = 0.05
    settings.LYRA_TRIGGER_MIN_DAYS = 7


def holding() -> dict[str, bool]:
    return {condition.name: condition.holds for condition in triggers.conditions()}


def trained(days_ago: float, **fields: str) -> TrainingRun:
    then = timezone.now() - timedelta(days=days_ago)
    how = {"status": "succeeded"} | fields
    return TrainingRun.objects.create(
        requested_by=system_user(), started_at=then, finished_at=then, **how
    )


def test_without_verdicts_nothing_but_the_time_holds():
    assert holding() == {
        "corrected verdicts": False,
        "correction rate": False,
        "days since the last run": True,
        "new verdicts": False,
    }
    assert not triggers.should_train()


def test_enough_corrections_at_a_high_rate_ask_for_a_training():
    accept(90)
    assert all(holding().values())
    assert triggers.should_train()


def test_a_sentence_gives_both_numbers():
    accept(60)
    corrected = triggers.conditions()[0]
    assert (corrected.have, corrected.need) == (30, 40)
    assert corrected.sentence == (
        "30 accepted corrected verdicts, confirmations not counted; by policy 40 start a run."
    )
    accept(90)
    assert triggers.conditions()[0].sentence.startswith("75 accepted corrected verdicts,")


def test_rows_drawn_with_small_probability_count_for_many():
    """50 right answers drawn at 1 %, 40 wrong ones reviewed completely: 40 of 5040 are wrong."""
    accept(90)
    Correction.objects.filter(verdict="confirmed").update(sampling_probability=0.01)
    rate = triggers.conditions()[1]
    assert rate.have == pytest.approx(45 / (45 + 4500))
    assert not rate.holds


def test_labelled_sets_do_not_dilute_what_was_drawn_from_live_answers():
    """60 live answers drawn with .5 or, where models disagree, .75; half of each wrong."""
    accept(30, sampling="audit", sampling_probability=0.5)
    accept(30, start=100, sampling="disagreement", sampling_probability=0.75)
    accept(90, start=200)
    Correction.objects.filter(sampling="complete").exclude(verdict="corrected").delete()
    rate = triggers.conditions()[1]
    assert rate.have == pytest.approx(0.5)
    assert "from 60 drawn verdicts" in rate.sentence


def test_what_an_older_version_got_wrong_is_no_reason_to_train(make_version, cast):
    """The base was wrong in half of 90 drawn answers; of the version that serves now, in none."""
    accept(90, sampling="audit", sampling_probability=0.5)
    assert triggers.conditions()[1].have == pytest.approx(0.5)
    version = make_version()
    promote(version, cast["rita"])
    told = triggers.conditions()[1]
    assert (told.have, told.holds) == (None, False)
    assert "Cannot be told of v1: it has answered nothing yet, and fewer than 30" in told.sentence
    theirs = {"predicted_version": 1, "predicted_digest": version.artifact_digest}
    accept(60, start=100, sampling="audit", sampling_probability=0.5, **theirs)
    Correction.objects.filter(**theirs, verdict="corrected").delete()
    assert triggers.conditions()[1].have == 0


def test_a_few_drawn_answers_do_not_stand_in_for_a_labelled_set():
    accept(90)
    accept(triggers.FEWEST_JUDGED - 1, start=100, sampling="audit", sampling_probability=0.5)
    assert (
        "Of 90 accepted labelled pairs the base has 50.0 % wrong;"
        in triggers.conditions()[1].sentence
    )


def test_where_nothing_was_drawn_answers_are_the_denominator():
    accept(90, sampling="user")
    assert triggers.conditions()[1].have is None
    few = PredictionTally.objects.create(hour=timezone.now(), label="neutral", count=10)
    assert triggers.conditions()[1].have is None
    assert "45 corrections are of its answers or do not say" in triggers.conditions()[1].sentence
    few.delete()
    PredictionTally.objects.create(hour=timezone.now(), label="neutral", count=450)
    assert triggers.conditions()[1].have == pytest.approx(0.1)


def test_a_recent_training_has_to_be_waited_for():
    run = trained(days_ago=2)
    accept(90)
    assert not triggers.should_train()
    TrainingRun.objects.filter(pk=run.pk).update(started_at=timezone.now() - timedelta(days=8))
    assert triggers.should_train()


def test_a_run_that_failed_has_to_be_waited_for_and_has_learnt_nothing():
    accept(90, reviewed_at=timezone.now() - timedelta(days=1))
    trained(days_ago=20)
    failed = trained(days_ago=0.05, status="failed", error="Not enough memory.")
    assert not holding()["days since the last run"]
    assert holding()["new verdicts"]
    assert not triggers.should_train()
    TrainingRun.objects.filter(pk=failed.pk).update(started_at=timezone.now() - timedelta(days=8))
    assert triggers.should_train()


def test_nothing_new_is_no_reason_to_train_again():
    accept(90, reviewed_at=timezone.now() - timedelta(days=30))
    trained(days_ago=20)
    assert not holding()["new verdicts"]
    assert not triggers.should_train()


def test_a_run_in_the_queue_is_enough(db):
    accept(90)
    training.request(by=User.objects.create_user("tina"))
    assert not triggers.should_train()


def test_it_starts_by_itself_only_where_that_is_switched_on(settings):
    accept(90)
    assert tasks.consider_training() == "no"
    settings.LYRA_AUTO_TRAIN = True
    run_name = tasks.consider_training()
    run = TrainingRun.objects.get()
    assert run_name == f"run {run.pk}"
    assert run.requested_by == system_user()
    assert tasks.consider_training() == "no"
