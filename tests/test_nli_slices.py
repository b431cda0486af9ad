"""Where a candidate gains and loses: by label and by domain."""

import numpy as np
import pytest

from adapters_app.nli.slices import MOST, Slice, compare_slices

ROWS = 600


def compare(right_a: np.ndarray, right_b: np.ndarray, **changes) -> dict[str, list[Slice]]:
    """ROWS pairs on pages of their own, labels by turns, unless changed."""
    labels = np.arange(ROWS) % 3
    given = {
        "kinds": {"label": labels.astype(str)},
        "answers_a": np.where(right_a, labels, (labels + 1) % 3),
        "answers_b": np.where(right_b, labels, (labels + 1) % 3),
        "labels": labels,
        "groups": np.arange(ROWS),
        "weights": np.ones(ROWS),
        "claims": np.arange(ROWS),
    } | changes
    return compare_slices(**given)


def test_a_label_that_is_answered_worse_shows_behind_a_gain_over_all() -> None:
    """A tenth of “0” is lost, while half of all others is gained."""
    label, n = np.arange(ROWS) % 3, np.arange(ROWS) // 3
    right_a = np.where(label == 0, True, n % 2 == 0)
    right_b = np.where(label == 0, n % 10 > 0, True)
    assert right_b.mean() > right_a.mean() + 0.2
    lost, *gained = compare(right_a, right_b)["label"]
    assert (lost.name, lost.rows, lost.a) == ("0", 200, 1)
    assert lost.b == lost.a + lost.difference.estimate == pytest.approx(0.9)
    assert lost.difference.high < 0
    assert [each.lost for each in (lost, *gained)] == [True, False, False]


def test_the_more_slices_are_looked_at_the_surer_a_loss_has_to_be() -> None:
    """Eight pairs lost and one gained of 200: enough of three slices, not of many more."""
    n = np.arange(ROWS)
    label = n % 3
    right_a, right_b = np.ones(ROWS, dtype=bool), np.ones(ROWS, dtype=bool)
    of_first = np.flatnonzero(label == 0)
    right_b[of_first[:8]] = False
    right_a[of_first[8]] = False
    few = compare(right_a, right_b)["label"][0]
    kinds = {"label": label.astype(str), "domain": (n % 20).astype(str)}
    many = compare(right_a, right_b, kinds=kinds)
    assert few.lost
    assert not many["label"][0].lost
    assert many["label"][0].difference == few.difference


def test_copies_and_pages_about_one_claim_make_no_loss_sure() -> None:
    right_a, right_b = np.ones(ROWS, dtype=bool), np.arange(ROWS) // 3 % 10 > 0
    assert all(each.lost for each in compare(right_a, right_b)["label"])
    for alike in ("groups", "claims"):
        some = compare(right_a, right_b, **{alike: np.arange(ROWS) % 5})["label"]
        assert not any(each.lost or each.enough for each in some)


def test_rows_of_no_name_are_in_no_slice_and_the_largest_come_first() -> None:
    n = np.arange(ROWS)
    names = np.where(n < 100, "", np.where(n < 200, "few", "many"))
    some = compare(n < 0, n < 0, kinds={"domain": names})["domain"]
    assert [(each.name, each.rows) for each in some] == [("many", 400), ("few", 100)]
    assert len(compare(n < 0, n < 0, kinds={"domain": n.astype(str)})["domain"]) == MOST


def test_shares_are_weighted_by_what_rows_stand_for() -> None:
    n = np.arange(ROWS)
    weights = np.where(n < 300, 9.0, 1.0)
    every = compare(n < 300, n >= 300, kinds={"domain": np.full(ROWS, "x")}, weights=weights)
    assert (every["domain"][0].a, every["domain"][0].b) == (pytest.approx(0.9), pytest.approx(0.1))
