"""Over-sampled disagreements: what is compared with the candidate, drawn, and with which chance."""

import os
from collections import Counter
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from adapters_app import registry, supervise, tasks
from adapters_app.models import AdapterVersion
from corrections import audits
from corrections.labels import LABELS, Label
from corrections.models import AuditSample, Correction
from inference import disagreements, engine, sampling, tallies
from tests.versions import PAIR, compare, promote

pytest_plugins = ("tests.serving",)

DIGEST = "d" * 64
LIST, API = "/admin/corrections/auditsample/", "/api/v1/audit-samples"


@pytest.fixture
def alice(on_tiny, as_user, settings, monkeypatch):
    """A caller of a server that audits half of its answers and compares a half."""
    settings.LYRA_AUDIT_SHARE = 0.5
    settings.LYRA_DISAGREEMENT_SHARE = 0.5
    monkeypatch.setattr(tallies, "_counts", Counter())
    monkeypatch.setattr(sampling, "_drawn", [])
    monkeypatch.setattr(sampling, "_losses", Counter())
    monkeypatch.setattr(sampling, "_candidate_there", False)
    sampling._lottery.seed(5)
    return as_user("alice")


def ask(client, count=64):
    pairs = [
        {"premise": f"{PAIR['premise']} {n}", "hypothesis": f"it is {n}"} for n in range(count)
    ]
    response = client.post("/api/v1/nli", {"pairs": pairs}, format="json")
    assert response.status_code == 200, response.content


def held(number, *, sampling="audit", minutes_ago=0.0, **values):
    """A sample that waits for the candidate; the caller was told `supports`."""
    named = {
        "premise": f"Ward {number} admitted {number * 91 + 4} people in week {number}.",
        "hypothesis": f"Ward {number} saw fever.",
        "predicted_label": "supports",
        "raw_confidence": 0.9,
        "confidence": 0.7,
        "predicted_version": 3,
        "predicted_digest": DIGEST,
        "probability": 0.2,
        "disagreement_share": 0.5,
        "sampling": sampling,
        "state": "comparing",
        "drawn_at": timezone.now() - timedelta(minutes=minutes_ago),
    }
    return AuditSample.objects.create(**named | values)


# --- Lots -----------------------------------------------------------------------------------------


def test_a_sample_is_held_for_the_candidate_and_no_request_asks_it(alice, make_version):
    candidate = make_version()
    sampling.flush()

    ask(alice)
    sampling.flush()

    samples = AuditSample.objects.all()
    assert 40 < samples.count() < 56  # three quarters of 64, give or take 2.4 standard errors
    assert {sample.state for sample in samples} == {"comparing"}
    assert {sample.sampling for sample in samples} == {"audit", "disagreement"}
    assert candidate.artifact_digest not in engine.loaded().digests


@pytest.mark.parametrize("there", ["no candidate", "no share"])
def test_where_nothing_is_to_be_compared_audits_wait_at_once(alice, make_version, settings, there):
    if there == "no share":
        settings.LYRA_DISAGREEMENT_SHARE = 0.0
        make_version()
    sampling.flush()
    ask(alice)
    sampling.flush()
    found = AuditSample.objects.values_list("state", "sampling", "disagreement_share")
    assert set(found) == {("waiting", "audit", 0.0)}


def test_each_case_is_drawn_as_often_as_its_recorded_chance_says(alice, settings, monkeypatch):
    """6,000 answers, a third of which the candidate contradicts: .2 where they agree, .2 + .8 · .5
    where they do not; and each weighed by its chance they are 6,000 again."""
    settings.LYRA_AUDIT_SHARE, settings.LYRA_AUDIT_WAITING = 0.2, 100_000
    monkeypatch.setattr(sampling, "_candidate_there", True)
    monkeypatch.setattr(registry, "newest_candidate", lambda: AdapterVersion(number=4))
    count = 6000
    result = engine.Result(Label.SUPPORTS, (0.7, 0.2, 0.1), Label.SUPPORTS, 0.9)
    answer = engine.Answer([result] * count, "base", None, None, DIGEST, "none", 0)
    sampling.draw(answer, [(f"premise {n}", f"{LABELS[n % 3]}") for n in range(count)])
    sampling.flush()

    said = dict(AuditSample.objects.values_list("pk", "hypothesis"))
    audits.settle({pk: Label(label) for pk, label in said.items()}, candidate=4)

    drawn = AuditSample.objects.waiting()
    agree, differ = drawn.filter(hypothesis="supports"), drawn.exclude(hypothesis="supports")
    assert agree.count() == pytest.approx(2000 * 0.2, abs=4 * (2000 * 0.2 * 0.8) ** 0.5)
    assert differ.count() == pytest.approx(4000 * 0.6, abs=4 * (4000 * 0.6 * 0.4) ** 0.5)
    assert set(agree.values_list("probability", "disagrees", "sampling")) == {(0.2, False, "audit")}
    assert set(differ.values_list("disagrees", flat=True)) == {True}
    assert {round(chance, 9) for chance in differ.values_list("probability", flat=True)} == {0.6}
    assert set(differ.values_list("sampling", flat=True)) == {"audit", "disagreement"}
    total = sum(1 / chance for chance in drawn.values_list("probability", flat=True))
    assert total == pytest.approx(count, abs=4 * (2000 * 4 + 4000 * 0.67) ** 0.5)
    assert not AuditSample.objects.to_compare().exists()


def test_both_lots_share_one_bound_and_only_lost_audits_are_counted(alice, settings, monkeypatch):
    settings.LYRA_AUDIT_WAITING = 3
    held(1)
    samples = [held(n, sampling=kind) for n, kind in enumerate(["disagreement", "audit"] * 3, 2)]
    AuditSample.objects.filter(pk__in=[sample.pk for sample in samples]).delete()
    for sample in samples:
        sample.pk = None

    assert audits.enqueue(samples, {}) == 2

    assert AuditSample.objects.count() == 3
    lost = audits.responses()[audits.PredictedBy(3, DIGEST)]
    assert (lost.not_kept, lost.waiting) == (2, 0)  # of the four without room two were audits


# --- Comparing ------------------------------------------------------------------------------------


def test_the_candidate_decides_what_joins_the_queue(alice, make_version):
    candidate = make_version()
    sampling.flush()
    ask(alice)
    sampling.flush()
    before = list(AuditSample.objects.all())
    said = engine.predict_with("v1", [(each.premise, each.hypothesis) for each in before]).results
    differ = {
        each.pk
        for each, answer in zip(before, said, strict=True)
        if answer.label != each.predicted_label
    }
    assert 0 < len(differ) < len(before)  # or the test shows nothing

    call_command("compare_answers")

    after = {each.pk: each for each in AuditSample.objects.waiting()}
    audited = {each.pk for each in before if each.sampling == "audit"}
    assert set(after) == audited | differ
    assert {each.compared_with for each in after.values()} == {candidate.number}
    for pk, sample in after.items():
        assert sample.disagrees == (pk in differ)
        assert sample.probability == (0.75 if pk in differ else 0.5)
    assert AuditSample.objects.count() == len(after)  # the others' texts are gone


def test_only_so_many_are_compared_at_a_time_the_oldest_first(on_tiny, make_version):
    make_version()
    young, old = held(1), held(2, minutes_ago=10)
    assert disagreements.compare(at_a_time=1)[0] == 1
    assert list(AuditSample.objects.to_compare()) == [young]
    assert list(AuditSample.objects.waiting()) == [old]


def test_who_settles_second_changes_nothing(db):
    sample = held(1)
    assert audits.settle({sample.pk: Label.REFUTES}, candidate=4) == 1
    assert audits.settle({sample.pk: Label.REFUTES}, candidate=5) == 0
    assert audits.release() == 0
    sample.refresh_from_db()
    assert (sample.probability, sample.compared_with) == (pytest.approx(0.6), 4)


def test_a_candidate_that_cannot_answer_holds_up_no_audit(on_tiny, make_version, monkeypatch):
    make_version()
    audit, _other = held(1), held(2, sampling="disagreement")
    monkeypatch.setattr(engine, "_models", engine._Models())
    monkeypatch.setattr(engine, "_load_adapter", _damaged)

    with pytest.raises(CommandError, match="v1 cannot be loaded"):
        call_command("compare_answers")

    [sample] = AuditSample.objects.all()
    assert (sample, sample.state, sample.probability) == (audit, "waiting", 0.2)
    assert (sample.disagrees, sample.compared_with) == (None, None)


def _damaged(*_):
    raise engine.EngineUnavailable("v1 cannot be loaded: damaged")


def test_what_nobody_compared_in_time_is_released(db):
    held(1, minutes_ago=61)
    held(2, minutes_ago=61, sampling="disagreement")
    young = held(3, minutes_ago=59, sampling="disagreement")
    tasks.reconcile()
    assert AuditSample.objects.waiting().get().hypothesis == "Ward 1 saw fever."
    assert AuditSample.objects.to_compare().get() == young
    assert AuditSample.objects.count() == 2


# --- The background task --------------------------------------------------------------------------


def test_without_a_candidate_the_task_starts_no_process(db, monkeypatch):
    monkeypatch.delattr(supervise, "run_apart")
    assert tasks.compare_answers() == "nothing to compare"
    held(1)
    assert tasks.compare_answers() == "no candidate, audits released 1"


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(240)
def test_the_task_compares_in_a_process_of_its_own(make_version, on_tiny, tiny, monkeypatch):
    make_version()
    sample = held(1)
    for name, value in {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "LYRA_ARTIFACTS": str(on_tiny / "store"),
        "LYRA_BASE_MODEL": tiny,
        "LYRA_ENGINE": "torch",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setattr(supervise, "APART_TIMEOUT_S", 230)  # a busy machine is no failure

    assert tasks.compare_answers() == "compare_answers ended with status 0"

    sample.refresh_from_db()
    assert (sample.state, sample.compared_with) == ("waiting", 1)


def test_a_worker_that_stops_does_not_wait_for_it():
    assert supervise.run_apart("compare_answers", should_stop=lambda: True) < 0


def test_the_candidate_is_the_newest_that_may_be_promoted(make_version, cast):
    assert registry.newest_candidate() is None
    first = make_version()
    assert registry.newest_candidate() == first
    second = make_version(verdict="inconclusive")
    make_version(verdict="worse")
    assert registry.newest_candidate() == second
    promote(first, cast["rita"])
    assert registry.newest_candidate() == second
    third = make_version(against=first)
    promote(third, cast["rita"])
    assert registry.newest_candidate() is None  # older than what serves
    registry.rollback(by=cast["rita"], reason="test", to=first)
    assert registry.newest_candidate() == second  # v4 has served


def test_a_comparison_with_what_does_not_serve_makes_no_candidate_and_unmakes_none(make_version):
    first, second = make_version(verdict="worse"), make_version()
    compare(second, first, verdict="worse")
    compare(first, second, verdict="better")
    assert registry.newest_candidate() == second


def test_a_candidate_of_another_base_is_none(make_version, settings):
    make_version()
    settings.LYRA_BASE_MODEL = "another/base"
    assert registry.newest_candidate() is None


# --- Judging --------------------------------------------------------------------------------------


def test_a_verdict_carries_how_it_was_drawn(cast):
    sample = held(1, sampling="disagreement")
    audits.settle({sample.pk: Label.REFUTES}, candidate=4)

    audits.answer(sample.pk, by=cast["bob"], correct_label="supports")

    row = Correction.objects.get()
    assert (row.sampling, row.sampling_probability) == ("disagreement", pytest.approx(0.6))


def test_what_is_held_is_nobodys_to_read(cast, as_user):
    sample = held(1)
    client = Client()
    client.force_login(cast["bob"])
    assert "Ward 1" not in client.get(f"{LIST}?all=1").content.decode()
    assert client.get(f"{LIST}{sample.pk}/change/").status_code == 404
    bob = as_user("bob")
    assert bob.get(API).json()["count"] == 0
    assert bob.get(f"{API}?state=comparing").status_code == 400
    assert bob.get(f"{API}/{sample.pk}").status_code == 404
    for decide in (audits.answer, audits.skip):
        with pytest.raises(AuditSample.DoesNotExist):
            decide(sample.pk, by=cast["bob"], **_decision(decide))


def _decision(decide):
    return {"correct_label": "neutral"} if decide is audits.answer else {"reason": "Unclear."}


def test_how_it_was_drawn_is_shown_once_it_is_judged(cast, as_user):
    sample = held(1, sampling="disagreement")
    audits.settle({sample.pk: Label.REFUTES}, candidate=4)
    client = Client()
    client.force_login(cast["bob"])
    page = f"{LIST}{sample.pk}/change/"
    told = "rawn where models disagree (v4 said otherwise), probability 0.6"
    bob = as_user("bob")

    for shown in (page, LIST):
        assert "disagree" not in client.get(shown).content.decode()
    unseen = bob.get(f"{API}/{sample.pk}").json()
    assert unseen["draw"] is None
    assert not {"probability", "sampling", "disagrees"} & set(unseen)
    audits.answer(sample.pk, by=cast["bob"], correct_label="supports")

    for shown in (page, f"{LIST}?state=answered"):
        assert told in client.get(shown).content.decode()
    assert bob.get(f"{API}/{sample.pk}").json()["draw"] == {
        "sampling": "disagreement",
        "probability": pytest.approx(0.6),
        "compared_with": 4,
        "disagrees": True,
    }
