"""What a frozen training set holds, and that nobody can alter it."""

import hashlib
import io
import json
import os
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.files.storage import storages
from django.core.management import call_command
from django.utils import timezone

from adapters_app import snapshots, storage
from adapters_app.models import LearningCurve, Snapshot, Study, TrainingRun
from adapters_app.nli.config import TrainConfig
from adapters_app.snapshots import SnapshotCorrupt
from corrections.acting import system_user
from corrections.models import Correction
from tests.verdicts import accept
from tests.versions import register

pytest_plugins = ("tests.serving",)
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def store(settings, tmp_path):
    settings.STORAGES = settings.STORAGES | {
        "artifacts": settings.STORAGES["artifacts"] | {"OPTIONS": {"location": str(tmp_path)}}
    }
    return tmp_path


def test_a_snapshot_is_named_by_its_content_and_reads_back(store):
    rows = accept(6, pages=2)
    frozen = snapshots.freeze()
    content = (store / frozen.storage_name).read_bytes()
    assert frozen.digest == hashlib.sha256(content).hexdigest()
    assert (frozen.rows, frozen.groups) == (6, 2)
    assert frozen.label_counts == {"supports": 2, "refutes": 2, "neutral": 2}
    loaded = snapshots.load(frozen)
    assert [row.correction_id for row in loaded] == [row.pk for row in rows]
    assert loaded[0].pair == (rows[0].premise, rows[0].hypothesis)
    assert loaded[0].fold == rows[0].group.fold


def test_a_line_says_who_predicted_where_that_is_known(store):
    """Else it is the line that it was before snapshots said so, and those are read, too."""
    base, version, _ = accept(3)
    Correction.objects.filter(pk=base.pk).update(predicted_digest="b" * 64)
    Correction.objects.filter(pk=version.pk).update(predicted_version=2, predicted_digest="d" * 64)
    frozen = snapshots.freeze()
    lines = [json.loads(line) for line in (store / frozen.storage_name).read_bytes().splitlines()]
    assert [line.get("predicted_digest") for line in lines] == ["b" * 64, "d" * 64, None]
    assert "predicted_version" not in lines[2]
    told = [(row.predicted_version, row.predicted_digest) for row in snapshots.load(frozen)]
    assert told == [(None, "b" * 64), (2, "d" * 64), (None, "")]


def test_the_same_verdicts_give_the_same_snapshot():
    accept(6)
    assert snapshots.freeze() == snapshots.freeze()
    assert Snapshot.objects.count() == 1


def test_only_accepted_verdicts_are_frozen():
    pending, rejected, *kept = accept(6)
    Correction.objects.filter(pk=pending.pk).update(status="pending")
    Correction.objects.filter(pk=rejected.pk).update(status="rejected")
    loaded = snapshots.load(snapshots.freeze())
    assert [row.correction_id for row in loaded] == [row.pk for row in kept]


def test_of_equal_verdicts_the_one_that_figures_may_use_is_kept():
    first, reported, *_ = accept(6)
    Correction.objects.filter(pk=reported.pk).update(
        pair_digest=first.pair_digest,
        correct_label=first.correct_label,
        predicted_label=first.correct_label,
        verdict="confirmed",
        sampling="user",
        sampling_probability=None,
    )
    frozen = snapshots.freeze()
    assert frozen.left_out == {"duplicates": 1, "in conflict": 0}
    assert first.pk in {row.correction_id for row in snapshots.load(frozen)}


def test_an_answer_drawn_twice_stands_for_all_that_its_draws_stand_for():
    """One in ten, and later one in five: for ten and five answers like it, 15 together."""
    once, again, other = accept(3, labels=("supports",), sampling="audit")
    same = {"sampling_probability": 0.2, "pair_digest": once.pair_digest}
    Correction.objects.filter(pk=again.pk).update(**same)
    Correction.objects.filter(pk__in=[once.pk, other.pk]).update(sampling_probability=0.1)
    loaded = {row.correction_id: row for row in snapshots.load(snapshots.freeze())}
    assert loaded.keys() == {again.pk, other.pk}
    assert loaded[again.pk].weight == pytest.approx(15)
    assert loaded[other.pk].weight == pytest.approx(10)


def test_pairs_people_disagree_on_are_left_out_and_counted():
    first, other, *rest = accept(6)
    Correction.objects.filter(pk=other.pk).update(pair_digest=first.pair_digest)
    frozen = snapshots.freeze()
    assert frozen.left_out == {"duplicates": 0, "in conflict": 2}
    assert {row.correction_id for row in snapshots.load(frozen)} == {row.pk for row in rest}


@pytest.mark.parametrize(
    "text", ["zeile\u2028two\r\nthree", "tab\tand \x85 next line", "日本語 😀"]
)
def test_any_text_survives(text):
    accept(3, premise=text)
    assert {row.premise for row in snapshots.load(snapshots.freeze())} == {text}


def test_an_altered_file_is_refused(store):
    accept(6)
    frozen = snapshots.freeze()
    path = store / frozen.storage_name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"supports", b"refutes "))
    with pytest.raises(SnapshotCorrupt, match="altered"):
        snapshots.load(frozen)


def test_a_missing_file_is_named():
    accept(6)
    frozen = snapshots.freeze()
    storages["artifacts"].delete(frozen.storage_name)
    with pytest.raises(SnapshotCorrupt, match="missing"):
        snapshots.load(frozen)


def test_filters_choose_what_is_learnt_not_what_is_judged():
    accept(12)
    rows = snapshots.load(snapshots.freeze())
    only = TrainConfig(corrections_only=True)
    assert len(rows) == 12
    assert {row.verdict for row in rows if row.trains(only)} == {"corrected"}
    assert not [row for row in rows if row.trains(TrainConfig(min_confidence=0.8))]


# --- pruning --------------------------------------------------------------------------------------


def frozen_long_ago() -> Snapshot:
    """A snapshot of other verdicts than before, old enough to be pruned."""
    accept(3, start=100 * Snapshot.objects.count())
    frozen = snapshots.freeze()
    make_old()
    return frozen


def make_old() -> None:
    Snapshot.objects.update(frozen_at=timezone.now() - 2 * storage.ORPHAN_AGE)
    for path in files():
        os.utime(path, (0, 0))


def files() -> list[str]:
    store = storages["artifacts"]
    return [store.path(f"snapshots/{name}") for name in store.listdir("snapshots")[1]]


def run_on(snapshot: Snapshot, status: str) -> TrainingRun:
    now = timezone.now()
    return TrainingRun.objects.create(
        requested_by=system_user(),
        snapshot=snapshot,
        status=status,
        error="Out of memory." if status == "failed" else "",
        device="here:cpu",
        started_at=now,
        lease_expires_at=now + timedelta(minutes=1),
    )


def pruned(**options: bool) -> str:
    out = io.StringIO()
    call_command("prune_artifacts", stdout=out, **options)
    return out.getvalue()


def test_what_only_ended_runs_name_is_pruned_and_the_runs_stay():
    frozen = frozen_long_ago()
    failed, cancelled = run_on(frozen, "failed"), run_on(frozen, "cancelled")
    unnamed = frozen_long_ago()
    runs = f"{failed.pk}, {cancelled.pk}"
    said = [
        f"{frozen.storage_name}  named only by runs {runs}, which made no version",
        f"{unnamed.storage_name}  named by nothing",
    ]
    assert pruned(dry_run=True).splitlines() == said
    assert len(files()) == Snapshot.objects.count() == 2
    assert pruned().splitlines() == said
    assert files() == []
    assert not Snapshot.objects.exists()
    failed.refresh_from_db()
    assert (failed.status, failed.error, failed.snapshot) == ("failed", "Out of memory.", None)
    assert pruned() == ""


def test_programs_are_told_what_was_pruned_and_which_runs_named_it(capsys):
    frozen = frozen_long_ago()
    run = run_on(frozen, "failed")
    call_command("prune_artifacts", json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pruned"] == [frozen.storage_name]
    assert told["snapshots"] == {frozen.storage_name: [run.pk]}


def test_the_page_and_the_api_show_a_run_whose_snapshot_was_pruned(client):
    client.force_login(User.objects.create_superuser("ada"))
    frozen = frozen_long_ago()
    run = run_on(frozen, "failed")
    page = f"/admin/adapters_app/trainingrun/{run.pk}/change/"
    assert "3 verdicts from 1 sources" in client.get(page).content.decode()
    pruned()
    shown = client.get(page)
    assert shown.status_code == 200
    assert "Out of memory." in shown.content.decode()
    assert "Trained on" not in shown.content.decode()
    assert client.get(f"/api/v1/training-runs/{run.pk}").json()["snapshot"] is None


def a_curve(frozen: Snapshot) -> None:
    LearningCurve.objects.create(
        snapshot=frozen,
        config={},
        rows=3,
        groups=1,
        points=[],
        projections={},
        seconds=1.0,
        created_by=system_user(),
    )


def a_study(frozen: Snapshot) -> None:
    Study.objects.create(
        snapshot=frozen, rows=3, groups=1, config={}, seconds=1.0, created_by=system_user()
    )


NAMED = {
    "a queued run": lambda frozen: run_on(frozen, "queued"),
    "a run that succeeded": lambda frozen: run_on(frozen, "succeeded"),
    "a running run": lambda frozen: run_on(frozen, "running"),
    "a learning curve": a_curve,
    "a study": a_study,
}


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_evidence_and_work_in_hand_keep_their_snapshot(name):
    frozen = frozen_long_ago()
    name(frozen)
    run_on(frozen, "failed")
    assert snapshots.prune() == {}
    assert len(snapshots.load(frozen)) == 3


def test_a_version_and_its_evaluations_keep_their_snapshot(tiny_model):
    version = register(system_user(), 1, "7" * 64, tiny_model)
    evaluated = frozen_long_ago()
    version.evaluations.update(snapshot=evaluated)
    make_old()
    run_on(evaluated, "failed")
    assert snapshots.prune() == {}
    assert set(Snapshot.objects.all()) == {version.snapshot, evaluated}


def test_what_was_frozen_within_the_hour_is_kept():
    frozen = frozen_long_ago()
    assert snapshots.freeze() == frozen
    assert snapshots.prune() == {}


def test_what_a_run_freezes_before_the_row_goes_is_kept(monkeypatch):
    frozen, forget = frozen_long_ago(), snapshots._forget
    monkeypatch.setattr(
        snapshots, "_forget", lambda snapshot: snapshots.freeze() and forget(snapshot)
    )
    assert snapshots.prune() == {}
    assert len(snapshots.load(frozen)) == 3


def test_what_a_run_freezes_before_the_file_goes_has_a_file_of_its_own(monkeypatch):
    frozen, forget = frozen_long_ago(), snapshots._forget
    monkeypatch.setattr(
        snapshots, "_forget", lambda snapshot: forget(snapshot) and snapshots.freeze()
    )
    assert list(snapshots.prune()) == [frozen.storage_name]
    anew = Snapshot.objects.get()
    assert anew.digest == frozen.digest
    assert len(snapshots.load(anew)) == 3
    assert len(files()) == 1


def test_what_is_cut_off_between_row_and_file_is_an_orphan_of_the_next(monkeypatch):
    frozen = frozen_long_ago()
    with monkeypatch.context() as patch:
        patch.setattr(storages["artifacts"], "delete", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            snapshots.prune()
    assert not Snapshot.objects.exists()
    assert len(files()) == 1
    assert pruned().splitlines() == [frozen.storage_name]
    assert files() == []


def test_hours_of_work_name_what_was_pruned_under_them():
    frozen = frozen_long_ago()
    rows = snapshots.load(frozen)
    assert snapshots.keep(frozen, rows) == frozen
    assert snapshots.prune() == {}
    make_old()
    assert len(snapshots.prune()) == 1
    accept(3, start=900)  # not what the work was done on
    kept = snapshots.keep(frozen, rows)
    assert (kept.digest, kept.left_out) == (frozen.digest, frozen.left_out)
    assert snapshots.load(kept) == rows
    assert snapshots.prune() == {}
