"""Near-duplicates are found, folds are balanced and never change, bridges are quarantined."""

from collections.abc import Iterable

import numpy as np
import pytest
from django.contrib.auth.models import User

from corrections import folds
from corrections.intake import edit_correction, record_correction
from corrections.labels import Label
from corrections.models import (
    Correction,
    Fold,
    JoinedPage,
    MinHashBand,
    PremiseText,
    SourceGroup,
)

TEXT = (
    "In a cohort of 4,210 adults the new anticoagulant was associated with fewer strokes than "
    "warfarin, although major bleeding occurred about as often in both groups over two years."
)
NEARLY = TEXT.replace("4,210", "4,211")


def unlike(seed: int, length: int = 30) -> str:
    """A text that shares next to nothing with any other seed's."""
    chosen = np.random.RandomState(seed).randint(0, 26, size=(length, 7))
    return " ".join("".join(chr(97 + letter) for letter in word) for word in chosen)


def record(by: User, premise: str, label: str = "supports", **values: object) -> Correction:
    correction, _ = record_correction(
        by=by,
        premise=premise,
        hypothesis=str(values.pop("hypothesis", "A claim.")),
        predicted_label="neutral",
        predicted_confidence=0.5,
        correct_label=label,
        **values,  # type: ignore[arg-type]
    )
    return correction


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ﬁve  Kilos\n", "five kilos"),  # ligature, case, white space
        ("STRASSE", "straße"),
        ("e\u0301", "é"),
        ("½\u00a0dose", "1⁄2 DOSE"),
    ],
)
def test_what_normalises_alike_is_one_text(text: str, same: str) -> None:
    assert folds.normalise(text) == folds.normalise(same)
    assert folds.pair_digest(text, "h") == folds.pair_digest(same, "H")


def test_moving_the_border_between_premise_and_hypothesis_is_another_pair() -> None:
    assert folds.pair_digest("a b", "c") != folds.pair_digest("a", "b c")


def test_jaccard_is_that_of_the_sets_of_character_5_grams() -> None:
    one, other = "abcdefgh abcdefgh", "abcdefgh xyz"
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other)]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    assert folds.jaccard(folds.shingles(one), folds.shingles(other)) == pytest.approx(expected)


def test_stored_buckets_stay_valid_in_every_release() -> None:
    # Buckets are in databases: if this fails, near-duplicates of old rows are no longer found.
    assert folds.buckets(folds.shingles("the quick brown fox"))[:2] == [
        -7533968498837997664,
        -7395868481213005237,
    ]


@pytest.mark.parametrize("text", ["a", "äö", "🙂", "a" * 200_000])
def test_texts_of_any_length_have_fourteen_distinct_buckets(text: str) -> None:
    assert len(set(folds.buckets(folds.shingles(text)))) == folds.BANDS


@pytest.mark.django_db
def test_a_near_duplicate_is_found_and_a_different_text_is_not(curator: User) -> None:
    record(curator, TEXT)

    found = folds.near_duplicate(NEARLY)

    assert found is not None
    assert found.text == folds.normalise(TEXT)
    assert folds.near_duplicate(unlike(1)) is None


@pytest.mark.django_db
def test_near_duplicates_share_a_group(curator: User) -> None:
    first = record(curator, TEXT)
    second = record(curator, NEARLY)
    third = record(curator, TEXT.upper(), page_id="p9")

    assert first.group == second.group == third.group
    assert JoinedPage.objects.get().key == "page:p9"


@pytest.mark.django_db
def test_a_page_that_joined_a_group_stays_in_it(curator: User) -> None:
    first = record(curator, TEXT)
    record(curator, NEARLY, page_id="p9")

    assert record(curator, unlike(2), page_id="p9").group == first.group


@pytest.mark.django_db
def test_all_rows_of_a_page_share_its_group(curator: User) -> None:
    groups = {record(curator, unlike(seed), page_id="p1").group for seed in range(5)}

    assert [group.key for group in groups] == ["page:p1"]


@pytest.mark.django_db
def test_groups_spread_over_the_folds_balanced_by_label(curator: User) -> None:
    for seed in range(30):
        record(curator, unlike(seed), label=["supports", "refutes", "neutral"][seed % 3])

    counts = set(Fold.objects.values_list("supports", "refutes", "neutral"))
    assert counts == {(2, 2, 2)}


@pytest.mark.django_db
def test_a_row_that_bridges_folds_is_quarantined_with_the_reason(curator: User) -> None:
    first = record(curator, TEXT)
    page = record(curator, unlike(1), page_id="p1")
    assert first.group.fold != page.group.fold

    bridge = record(curator, NEARLY, page_id="p1")

    assert bridge.status == "pending"
    assert f"fold {first.group.fold}" in bridge.quarantine
    assert bridge.group == page.group
    assert SourceGroup.objects.count() == 2  # nothing merged


@pytest.mark.django_db
def test_the_text_of_a_quarantined_row_belongs_to_no_fold(curator: User) -> None:
    first = record(curator, TEXT)
    record(curator, unlike(1), page_id="p1")
    record(curator, NEARLY, page_id="p1")

    # Without the page, the same text is plainly a near-duplicate of the first.
    later = record(curator, NEARLY)

    assert later.group == first.group
    assert later.quarantine == ""


@pytest.mark.django_db
def test_a_text_near_two_groups_of_different_folds_is_quarantined(curator: User) -> None:
    middle = unlike(5, length=40)
    words = middle.split()
    left = " ".join([*words[:-4], *unlike(6, length=4).split()])
    right = " ".join([*unlike(7, length=4).split(), *words[4:]])
    first, second = record(curator, left), record(curator, right)
    assert first.group.fold != second.group.fold
    assert folds.near_duplicate(middle) is not None

    assert record(curator, middle).quarantine != ""


@pytest.mark.django_db
def test_fold_counts_follow_an_edited_label(curator: User) -> None:
    row = record(curator, TEXT, label="supports")

    edit_correction(row, by=curator, correct_label="refutes")

    fold = Fold.objects.get(number=row.group.fold)
    assert (fold.supports, fold.refutes, fold.neutral) == (0, 1, 0)


@pytest.mark.django_db
def test_placing_is_refused_where_somebody_got_in_between(curator: User) -> None:
    survey = folds.Survey([folds.Source(NEARLY, "p1", Label.NEUTRAL)])
    first = record(curator, TEXT)

    with pytest.raises(folds.SurveyOutdatedError):
        survey.place(folds.lock_folds(), [0])
    survey.update()
    placement = survey.place(folds.lock_folds(), [0])[0]

    assert placement.group == first.group


@pytest.mark.django_db
def test_looking_up_costs_three_queries_however_much_is_stored(
    curator: User, django_assert_max_num_queries: object
) -> None:
    for seed in range(20):
        record(curator, unlike(seed))
    assert PremiseText.objects.count() == 20

    with django_assert_max_num_queries(3):  # type: ignore[operator]
        folds.near_duplicate(NEARLY)


@pytest.mark.parametrize("database", ["db", "on_postgresql"])
def test_of_a_crowded_bucket_the_first_premises_stand_for_all(
    database: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(database)
    group = SourceGroup.objects.create(key="page:1", fold=0)
    texts = [PremiseText(digest=f"{n:064}", text=str(n), group=group) for n in range(200)]
    premises = [text.pk for text in PremiseText.objects.bulk_create(texts)]
    crowded, quiet, empty, other = -(2**63), 2, 3, 2**63 - 1
    stored = [(pk, crowded) for pk in reversed(premises)]
    stored += [(pk, quiet) for pk in premises[-3:]] + [(premises[0], other)]
    MinHashBand.objects.bulk_create(MinHashBand(premise_id=pk, bucket=b) for pk, b in stored)

    found = folds.first_in([crowded, quiet, empty])

    first = [(crowded, pk) for pk in premises[: folds.MAX_CANDIDATES]]
    assert found == first + [(quiet, pk) for pk in premises[-3:]]


@pytest.mark.django_db
def test_texts_made_from_a_template_are_not_all_read_for_one_more(
    curator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "The trial enrolled {} patients at eleven centres and followed them for two years."
    first = record(curator, template.format(0))
    for number in range(1, 40):
        record(curator, template.format(number))
    match = folds.Survey._match
    read: list[tuple[int, int]] = []

    def counting(survey: folds.Survey, bands: Iterable[tuple[int, int]]) -> None:
        read.extend(bands)
        match(survey, read)

    monkeypatch.setattr(folds.Survey, "_match", counting)
    monkeypatch.setattr(folds, "MAX_CANDIDATES", 8)
    one_more = record(curator, template.format(977))

    assert 0 < len(read) <= folds.BANDS * 8
    assert one_more.group == first.group
