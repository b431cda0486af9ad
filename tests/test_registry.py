"""The gate, the ledger and the walk back; and what happens when two releasers click at once."""

import getpass
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from adapters_app import liveness, registry, storage, training
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    LedgerIsAppendOnly,
    Promotion,
    Serving,
    ServingProcess,
    TrainingRun,
)
from adapters_app.registry import Incumbent, PromotionRefused, VersionUnknown
from tests.tiny import tiny_base
from tests.versions import compare, register
from tests.versions import write_adapter as write

pytest_plugins = ("tests.serving", "tests.s3")


@pytest.fixture
def rita(cast) -> User:
    return cast["rita"]


def promote(version: AdapterVersion, by: User, **how) -> Promotion:
    how = {"reason": "reads well", "expected_revision": registry.serving().revision} | how
    return registry.promote(version, by=by, **how)


def rollback(by: User, **how) -> str:
    registry.rollback(by=by, reason="it reads worse", **how)
    version = registry.serving().version
    return version.name if version else "base"


def evidence_against_all(versions: list[AdapterVersion]) -> None:
    """Each version gets evidence that it is better than each other one."""
    for version in versions:
        evidence = registry.latest_evidence(version)
        for other in versions:
            if other != version:
                evidence.pk, evidence._state.adding, evidence.incumbent = None, True, other
                evidence.incumbent_calibration = registry.latest_calibration(other)
                evidence.save()


# --- promoting ------------------------------------------------------------------------------------


def test_a_promoted_version_serves_with_the_calibrator_that_was_measured(make_version, rita):
    version = make_version()
    entry = promote(version, rita, os_user="rita@desk")
    row = registry.serving()
    assert (row.version, row.revision) == (version, 1)
    assert row.calibration == registry.latest_evidence(version).candidate_calibration
    assert (entry.by, entry.os_user, entry.reason) == (rita, "rita@desk", "reads well")
    assert (entry.previous_version, entry.revision, entry.overridden) == (None, 1, False)
    assert entry.evidence == registry.latest_evidence(version)


@pytest.mark.parametrize("verdict", ["better", "not_worse"])
def test_good_evidence_needs_no_acknowledgement(make_version, rita, verdict):
    entry = promote(make_version(verdict=verdict), rita)
    assert (entry.acknowledged, entry.overridden) == (False, False)


def test_inconclusive_evidence_needs_an_acknowledgement(make_version, rita):
    version = make_version(verdict="inconclusive")
    with pytest.raises(PromotionRefused, match="inconclusive on 200 pairs"):
        promote(version, rita)
    assert promote(version, rita, acknowledge=True).acknowledged


def test_worse_needs_an_override_and_an_acknowledgement_is_none(make_version, rita):
    version = make_version(verdict="worse")
    with pytest.raises(PromotionRefused, match="says worse"):
        promote(version, rita, acknowledge=True)
    assert promote(version, rita, override=True).overridden


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_reason_is_needed(make_version, rita, reason):
    with pytest.raises(PromotionRefused, match="reason"):
        promote(make_version(), rita, reason=reason)


def test_a_stale_page_is_told_who_was_faster(make_version, rita, cast):
    first, second = make_version(), make_version()
    seen = registry.serving().revision
    promote(first, cast["ada"])
    with pytest.raises(PromotionRefused, match=rf"ada promoted {first.name} at 20\d\d-.*saw 0"):
        promote(second, rita, expected_revision=seen)
    assert registry.serving().version == first


def test_evidence_against_another_incumbent_is_refused(make_version, rita):
    first, second = make_version(), make_version()
    promote(first, rita)
    with pytest.raises(PromotionRefused, match=rf"against {first.name}.*measured against the base"):
        promote(second, rita)
    promote(make_version(against=first), rita)


def test_a_comparison_with_what_did_not_serve_is_never_evidence(make_version, rita):
    first, second = make_version(), make_version()
    compared = compare(second, first)
    with pytest.raises(PromotionRefused, match=r"Evaluation .* compares v2 with v1, which did"):
        promote(second, rita, evidence_id=compared.pk)
    promote(first, rita)  # what it was compared with serves from now on, with the same calibrator
    assert not compared.is_against(registry.serving())
    words = "no evidence against v1.*compared with v1 when that did not serve"
    for how in ({}, {"evidence_id": compared.pk}, {"override": True}):
        with pytest.raises(PromotionRefused, match=words):
            promote(second, rita, **how)
    assert registry.comparisons_with(registry.incumbent()) == []
    assert registry.latest_evidence(second).incumbent is None


def test_a_comparison_with_what_did_not_serve_does_not_stand_before_evidence(make_version, rita):
    first, second = make_version(), make_version()
    evidence = registry.latest_evidence(second)
    for incumbent in (first, None):
        compare(second, incumbent, verdict="worse")
    assert promote(second, rita).evidence == evidence


def test_what_a_version_is_compared_with(make_version, rita, cast):
    first, second = make_version(), make_version()
    served, newest = registry.latest_calibration(first), calibrate_again(first, cast["tom"])
    promote(first, rita)
    for against in ("", "v1", "1"):
        found = registry.incumbent(against)
        assert (found.version, found.calibration, found.serves) == (first, served, True)
    rollback(rita)
    assert registry.incumbent("base") == registry.incumbent() == Incumbent(None, None, serves=True)
    assert registry.incumbent("v1") == Incumbent(first, newest, serves=False)
    promote(second, rita)
    assert registry.incumbent("base") == Incumbent(None, None, serves=False)
    with pytest.raises(VersionUnknown, match="v9"):
        registry.incumbent("v9")


@pytest.mark.parametrize(
    ("method", "parameters", "so_far"),
    [
        ("temperature", {"temperature": 1.5}, 2),
        ("bcts", {"temperature": 1.5, "offsets": [0.5, -0.5, 0.0]}, 0),
    ],
)
def test_a_new_calibrator_of_what_serves_is_something_else_only_if_it_answers_otherwise(
    make_version, rita, cast, method, parameters, so_far
):
    first = make_version()
    promote(first, rita)
    make_version(against=first)
    make_version(against=first)
    assert len(registry.comparisons_with(registry.incumbent())) == 2
    calibrate_again(first, cast["tom"], method=method, parameters=parameters)
    promote(first, rita)
    assert len(registry.comparisons_with(registry.incumbent())) == so_far


def test_evidence_against_another_calibrator_of_what_serves_is_refused(make_version, rita, cast):
    first = make_version()
    promote(first, rita)
    second = make_version(against=first)
    calibrate_again(first, cast["tom"])
    promote(first, rita)
    with pytest.raises(PromotionRefused, match="with another calibrator than serves now"):
        promote(second, rita, override=True)
    rollback(rita)
    promote(second, rita)
    assert registry.serving().version == second


def test_a_version_without_evidence_is_refused_even_with_override(make_version, rita):
    version = make_version()
    version.evaluations.all().delete()
    with pytest.raises(PromotionRefused, match="no evidence"):
        promote(version, rita, override=True)


def test_what_serves_is_not_promoted_again(make_version, rita):
    version = make_version()
    promote(version, rita)
    with pytest.raises(PromotionRefused, match="already serves, with its newest calibrator"):
        promote(version, rita)


def calibrate_again(version: AdapterVersion, by: User, **changes: Any) -> CalibrationEvaluation:
    """A newer calibrator of `version`, a little better than what it replaces unless told."""
    before = {"brier_before": 0.5, "ece_before": 0.1, "log_loss_before": 1.0}
    after = {"brier_after": 0.3, "ece_after": 0.05, "log_loss_after": 0.8}
    how = {"method": "temperature", "parameters": {"temperature": 1.5}}
    fitted = registry.NewCalibration(
        fitted_rows=300,
        rows=300,
        bins_before=[],
        bins_after=[],
        candidates={},
        not_tried={},
        reliability_before={},
        reliability_after={},
        **how
        | before
        | after
        | {
            "replaces": registry.present_calibration(version),
            "replaced": {"brier": 0.4, "ece": 0.06, "log_loss": 0.9},
        }
        | changes,
    )
    return registry.record_calibration(version, fitted, by=by)


def test_the_version_that_serves_gets_a_newer_calibrator_and_a_rollback_the_older(
    make_version, rita, cast
):
    version = make_version()
    promote(version, rita)
    older = registry.serving().calibration
    newer = calibrate_again(version, cast["tom"])
    entry = promote(version, rita)
    assert (entry.action, entry.version, entry.previous_version) == ("promote", version, version)
    assert (entry.calibration, entry.previous_calibration) == (newer, older)
    assert (entry.evidence, entry.overridden) == (None, False)
    assert (registry.serving().calibration, registry.serving().revision) == (newer, 2)
    assert rollback(rita) == version.name
    assert registry.serving().calibration == older
    assert rollback(rita) == "base"


@pytest.mark.parametrize("figure", ["brier_after", "log_loss_after"])
def test_a_calibrator_that_is_not_better_needs_an_override(make_version, rita, cast, figure):
    version = make_version()
    promote(version, rita)
    worse = calibrate_again(version, cast["tom"], **{figure: 0.95})
    with pytest.raises(PromotionRefused, match=r"on 300 pairs is 0\.9500, now 0\.[49]000"):
        promote(version, rita, acknowledge=True)
    assert promote(version, rita, override=True).overridden
    assert registry.serving().calibration == worse


def test_calibrators_are_compared_on_the_same_pairs_whatever_each_had_on_its_own(
    make_version, rita, cast
):
    """The newer verdicts are harder: figures are higher than the present calibrator's own ones."""
    version = make_version()
    promote(version, rita)
    harder = {"brier_after": 0.5, "log_loss_after": 1.1}
    assert harder["brier_after"] > registry.serving().calibration.brier_after
    on_those = {"brier": 0.55, "ece": 0.1, "log_loss": 1.2}
    newer = calibrate_again(version, cast["tom"], **harder, replaced=on_those)
    assert not promote(version, rita).overridden
    assert registry.serving().calibration == newer


def test_a_calibrator_that_was_compared_with_another_one_needs_an_override(
    make_version, rita, cast
):
    version = make_version()
    promote(version, rita)
    other = calibrate_again(version, cast["tom"])
    calibrate_again(version, cast["tom"], replaces=other)
    with pytest.raises(PromotionRefused, match=r"compared it with v1/c1 .* on the same pairs"):
        promote(version, rita)
    assert promote(version, rita, override=True).overridden


def test_a_calibrator_fitted_since_one_looked_is_not_promoted_unseen(make_version, rita, cast):
    version = make_version()
    promote(version, rita)
    seen = calibrate_again(version, cast["tom"])
    newest = calibrate_again(version, cast["tom"])
    with pytest.raises(PromotionRefused, match="calibrated again since you looked"):
        promote(version, rita, calibration_id=seen.pk)
    promote(version, rita, calibration_id=newest.pk)


def test_four_eyes_for_a_calibrator(make_version, cast, settings):
    settings.LYRA_FOUR_EYES = True
    version = make_version()
    promote(version, cast["ada"])
    calibrate_again(version, cast["rita"])
    with pytest.raises(PromotionRefused, match="You fitted v1/c2"):
        promote(version, cast["rita"])
    promote(version, cast["ada"])


def test_evidence_that_came_since_one_looked_is_not_passed_over(make_version, rita):
    version = make_version()
    seen = registry.latest_evidence(version)
    promoting = {"evidence_id": seen.pk}
    newer = registry.latest_evidence(version)
    newer.pk, newer._state.adding, newer.verdict = None, True, "not_worse"
    newer.save()
    with pytest.raises(PromotionRefused, match="again since you looked: not worse"):
        promote(version, rita, **promoting)
    assert promote(version, rita, evidence_id=newer.pk).evidence == newer


def test_a_user_without_a_name_on_this_machine_is_told_by_number(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert registry.os_user() == str(os.getuid())


def test_a_version_identical_to_what_serves_is_refused(make_version, rita, cast, tiny_model):
    first = make_version()
    promote(first, rita)
    same = register(cast["tom"], 2, first.artifact_digest, tiny_model, against=first)
    with pytest.raises(PromotionRefused, match="identical to v1"):
        promote(same, rita, override=True)


def test_another_base_is_refused(make_version, rita, settings, tmp_path):
    version = make_version()
    settings.LYRA_BASE_MODEL = tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(PromotionRefused, match=r"other \(fingerprint not measured yet\)"):
        promote(version, rita)


def test_what_a_run_last_measured_decides_while_nobody_serves(make_version, rita, cast):
    version = make_version()
    TrainingRun.objects.create(
        requested_by=cast["tom"], base_name=training.base_label(), base_fingerprint="e" * 64
    )
    with pytest.raises(PromotionRefused, match=f"{version.base_fingerprint[:12]}.*eeeeeeeeeeee"):
        promote(version, rita)


def serve(name: str, fingerprint: str) -> None:
    """A web process reports the base it has loaded."""
    liveness.saw_server(name, base_name=training.base_label(), base_fingerprint=fingerprint)


def test_a_web_process_whose_base_was_changed_under_the_same_name_is_noticed(make_version, rita):
    """One of two replicas was started again after its base's files had been replaced."""
    version = make_version()
    serve("one:1", version.base_fingerprint)
    serve("two:2", "e" * 64)
    both = f"fingerprint {version.base_fingerprint[:12]}.*two:2 answers with .*fingerprint e{{12}}"
    with pytest.raises(PromotionRefused, match=both):
        promote(version, rita)
    assert registry.serving().version is None
    liveness.server_ended("two:2")
    promote(version, rita)


def test_a_rollback_to_a_version_of_another_base_is_refused(make_version, rita):
    version = make_version()
    promote(version, rita)
    rollback(rita, to="base")
    serve("one:1", "e" * 64)
    with pytest.raises(PromotionRefused, match="one:1 answers with"):
        rollback(rita, to=version)


def test_what_web_processes_loaded_counts_more_than_what_was_measured_elsewhere(
    make_version, rita, cast
):
    version = make_version()
    TrainingRun.objects.create(
        requested_by=cast["tom"], base_name=training.base_label(), base_fingerprint="e" * 64
    )
    serve("one:1", version.base_fingerprint)
    promote(version, rita)


def test_a_web_process_that_was_killed_is_not_asked(make_version, rita):
    version = make_version()
    serve("one:1", "e" * 64)
    silent = timezone.now() - liveness.SERVER_SILENT_AFTER - timedelta(seconds=1)
    ServingProcess.objects.update(seen_at=silent)
    promote(version, rita)
    serve("two:2", version.base_fingerprint)
    assert [process.name for process in ServingProcess.objects.all()] == ["two:2"]


def test_damaged_files_are_found_before_anything_changes(make_version, rita, on_tiny):
    version = make_version()
    tensors = on_tiny / "store" / "artifacts" / version.artifact_digest / storage.TENSORS
    tensors.chmod(0o600)
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(PromotionRefused, match="altered in storage"):
        promote(version, rita)
    assert registry.serving().version is None


def test_a_store_that_is_away_refuses_in_words_and_changes_nothing(make_version, rita, s3):
    version = make_version()
    s3.refuses = 503
    with pytest.raises(
        PromotionRefused, match=r"v1 cannot be looked at just now\. The artifact st"
    ):
        promote(version, rita)
    assert registry.serving().version is None
    s3.refuses = 0
    promote(version, rita)
    rollback(rita)
    s3.go_away()
    with pytest.raises(PromotionRefused, match="just now"):
        rollback(rita, to=version)


def test_four_eyes(make_version, cast, settings):
    settings.LYRA_FOUR_EYES = True
    version = make_version()
    with pytest.raises(PromotionRefused, match="somebody else"):
        promote(version, cast["tom"])
    promote(version, cast["rita"])


def test_the_ledger_only_grows(make_version, rita):
    entry = promote(make_version(), rita)
    entry.reason = "rewritten"
    for change in (
        entry.save,
        entry.delete,
        Promotion.objects.all().delete,
        lambda: Promotion.objects.update(reason="rewritten"),
        lambda: Promotion.objects.bulk_update([entry], ["reason"]),
        lambda: Promotion._base_manager.update(reason="rewritten"),
    ):
        with pytest.raises(LedgerIsAppendOnly):
            change()
    assert Promotion.objects.get().reason == "reads well"


REWRITES = (
    "UPDATE adapters_app_promotion SET reason = 'rewritten'",
    "UPDATE adapters_app_promotion SET by_id = by_id",
    "DELETE FROM adapters_app_promotion WHERE revision = 2",
    "DELETE FROM adapters_app_adapterversion WHERE number = 2",
)


@contextmanager
def refused_by_the_database() -> Iterator[None]:
    with (
        pytest.raises(IntegrityError, match=r"never (changed|deleted)"),
        transaction.atomic(),
    ):
        yield


def history_stays(on_tiny, base) -> None:
    """Two versions have served; no SQL changes that afterwards."""
    by = User.objects.create_user("rita")
    one, two = (
        register(by, i, storage.put(on_tiny / write(on_tiny, base, seed=i)), base) for i in (1, 2)
    )
    evidence_against_all([one, two])
    promote(one, by)
    promote(two, by)
    tables = (Promotion, AdapterVersion)
    before = [list(table.objects.order_by("pk").values()) for table in tables]
    for statement in REWRITES:
        with refused_by_the_database(), connection.cursor() as cursor:
            cursor.execute(statement)
    for field in AdapterVersion._meta.concrete_fields:  # also one that is added later
        with refused_by_the_database():
            AdapterVersion.objects.update(**{field.attname: F(field.attname)})
    assert [list(table.objects.order_by("pk").values()) for table in tables] == before


def test_no_sql_rewrites_history_on_postgresql(on_tiny, tiny_model, on_postgresql):
    history_stays(on_tiny, tiny_model)


@pytest.mark.django_db
def test_no_sql_rewrites_history_on_sqlite(on_tiny, tiny_model):
    history_stays(on_tiny, tiny_model)


def flush_empties(on_tiny, base) -> None:
    history_stays(on_tiny, base)
    call_command("flush", "--no-input", verbosity=0)
    assert not Promotion.objects.exists()
    assert not AdapterVersion.objects.exists()


def test_a_system_can_be_emptied_on_postgresql(on_tiny, tiny_model, on_postgresql):
    flush_empties(on_tiny, tiny_model)


@pytest.mark.django_db(transaction=True)
def test_a_system_can_be_emptied_on_sqlite(on_tiny, tiny_model):
    flush_empties(on_tiny, tiny_model)


def test_names_and_numbers_find_a_version(make_version):
    version = make_version()
    assert registry.find_version("v1") == registry.find_version(" 1 ") == version
    for text in ("v2", "base", "", "../1", "1.0", "-1", "²", "9" * 30):
        with pytest.raises(VersionUnknown):
            registry.find_version(text)


# --- rolling back ---------------------------------------------------------------------------------


def test_the_walk_back(make_version, rita):
    """P1 P2 P3 R→2 R→1 P4 R→1 R→base."""
    one, two, three, four = versions = [make_version() for _ in range(4)]
    evidence_against_all(versions)
    for version in (one, two, three):
        promote(version, rita)
    assert rollback(rita) == two.name
    assert rollback(rita) == one.name
    promote(four, rita)
    assert rollback(rita) == one.name
    assert rollback(rita) == "base"
    with pytest.raises(PromotionRefused, match="nothing to roll back"):
        rollback(rita)
    assert registry.serving().revision == Promotion.objects.count() == 8


def test_a_rollback_restores_the_calibrator_too(make_version, rita):
    one, two = versions = [make_version(), make_version()]
    evidence_against_all(versions)
    promote(one, rita)
    before = registry.serving().calibration
    promote(two, rita)
    fitted = CalibrationEvaluation.objects.get(pk=before.pk)
    fitted.pk, fitted.number = None, 2
    fitted._state.adding = True
    fitted.save()  # a newer calibrator of v1, which never served
    rollback(rita)
    assert (registry.serving().version, registry.serving().calibration) == (one, before)


def test_a_rollback_to_a_chosen_version_walks_on_from_there(make_version, rita):
    one, two, three = versions = [make_version() for _ in range(3)]
    evidence_against_all(versions)
    for version in versions:
        promote(version, rita)
    assert rollback(rita, to=two) == two.name
    assert rollback(rita, to="base") == "base"
    assert rollback(rita, to=three) == three.name  # forward again: it has served
    assert rollback(rita) == two.name
    assert rollback(rita) == one.name


def test_what_never_served_cannot_be_rolled_back_to(make_version, rita):
    first, second = make_version(), make_version()
    promote(first, rita)
    with pytest.raises(PromotionRefused, match="never served"):
        rollback(rita, to=second)
    with pytest.raises(PromotionRefused, match="not to “elsewhere”"):
        rollback(rita, to="elsewhere")
    with pytest.raises(PromotionRefused, match="already serves"):
        rollback(rita, to=first)


def test_a_stale_rollback_is_refused(make_version, rita):
    promote(make_version(), rita)
    with pytest.raises(PromotionRefused, match="rita promoted v1"):
        rollback(rita, expected_revision=0)


def test_a_rollback_onto_damaged_files_is_refused(make_version, rita, on_tiny):
    one, two = versions = [make_version(), make_version()]
    evidence_against_all(versions)
    promote(one, rita)
    promote(two, rita)
    (on_tiny / "store" / "artifacts" / one.artifact_digest / storage.TENSORS).unlink()
    with pytest.raises(PromotionRefused, match="v1 cannot serve"):
        rollback(rita)
    assert registry.serving().version == two


# --- at once --------------------------------------------------------------------------------------


def at_once(count: int, act: Callable[[int], str]) -> list[str]:
    """Run `act(0)` … `act(count - 1)` in threads that start together; their results."""
    gate = threading.Barrier(count)

    def contender(number: int) -> str:
        gate.wait()
        try:
            return act(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(contender, range(count)))


def two_releasers(on_tiny, base) -> None:
    """Four releasers promote a version each, all having seen revision 0."""
    releasers = [User.objects.create_user(f"releaser-{i}") for i in range(4)]
    versions = [
        register(releasers[i], i + 1, storage.put(on_tiny / write(on_tiny, base, seed=i)), base)
        for i in range(4)
    ]

    def click(number: int) -> str:
        try:
            promote(versions[number], releasers[number], expected_revision=0)
        except PromotionRefused as refusal:
            return str(refusal)
        return "promoted"

    answers = at_once(4, click)
    winner = answers.index("promoted")
    assert registry.serving().version == versions[winner]
    assert registry.serving().revision == 1
    assert Promotion.objects.get().by == releasers[winner]
    losers = [answer for answer in answers if answer != "promoted"]
    assert len(losers) == 3
    assert all(f"releaser-{winner} promoted v{winner + 1}" in answer for answer in losers)


def one_claim(tina: User) -> None:
    """Eight workers answer the doorbell of one run, each on a device of its own."""
    run = TrainingRun.objects.create(requested_by=tina)

    def answer(number: int) -> str:
        lease = training.claim(run.pk, worker=f"host-{number}:1", device=f"host-{number}:cpu")
        return str(lease.token) if lease else "not claimed"

    assert sorted(at_once(8, answer)) == ["1"] + ["not claimed"] * 7
    run.refresh_from_db()
    assert (run.attempts, run.fencing_token) == (1, 1)


def one_device(tina: User) -> None:
    """Four runs, one device."""
    runs = [TrainingRun.objects.create(requested_by=tina) for _ in range(4)]

    def answer(number: int) -> str:
        lease = training.claim(runs[number].pk, worker="host:1", device="host:cuda:0")
        return "claimed" if lease else "not claimed"

    assert sorted(at_once(4, answer)) == ["claimed"] + ["not claimed"] * 3


def test_of_releasers_at_once_one_wins_on_postgresql(on_tiny, tiny_model, on_postgresql):
    two_releasers(on_tiny, tiny_model)


@pytest.mark.django_db(transaction=True)
def test_of_releasers_at_once_one_wins_on_sqlite(on_tiny, tiny_model):
    two_releasers(on_tiny, tiny_model)


def test_a_run_is_claimed_once_on_postgresql(on_postgresql):
    one_claim(User.objects.create_user("tina"))


@pytest.mark.django_db(transaction=True)
def test_a_run_is_claimed_once_on_sqlite():
    one_claim(User.objects.create_user("tina"))


def test_a_device_trains_one_run_on_postgresql(on_postgresql):
    one_device(User.objects.create_user("tina"))


@pytest.mark.django_db(transaction=True)
def test_a_device_trains_one_run_on_sqlite():
    one_device(User.objects.create_user("tina"))


@pytest.mark.django_db(transaction=True)
def test_a_promotion_that_cannot_be_written_down_does_not_happen(on_tiny, tiny_model):
    """State and ledger are one transaction: without the second there is not the first."""
    by = User.objects.create_user("rita")
    digest = storage.put(on_tiny / write(on_tiny, tiny_model, seed=1))
    version = register(by, 1, digest, tiny_model)
    promote_and_fail = transaction.atomic(lambda: (promote(version, by), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        promote_and_fail()
    assert Serving.objects.get().version is None
    assert not Promotion.objects.exists()
