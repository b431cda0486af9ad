"""What a frozen training set holds, and that nobody can alter it."""

import hashlib

import pytest
from django.core.files.storage import storages

from adapters_app import snapshots
from adapters_app.models import Snapshot
from adapters_app.nli.config import TrainConfig
from adapters_app.snapshots import SnapshotCorrupt
from corrections.models import Correction
from tests.verdicts import accept

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
