"""The admin's page of two versions side by side: what is on record, and what does not compare."""

import io
import json
import re
from datetime import timedelta

import pytest
from django.contrib.messages import get_messages
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from adapters_app.models import (
    CalibrationEvaluation,
    ShadowEvaluation,
    Snapshot,
    TrainingRun,
)
from corrections.models import Correction
from tests.test_admin_adapters import Markup, figures, text_of
from tests.verdicts import accept
from tests.versions import compare, promote

pytest_plugins = ("tests.serving",)

INDEX = "/admin/"
VERSIONS = "/admin/adapters_app/adapterversion/"
COMPARE = f"{VERSIONS}compare/"
ROW = re.compile(r"<tr>(.*?)</tr>", flags=re.S)
GUARD = figures()["guard"]


@pytest.fixture
def page_of(cast):
    def client(name: str) -> Client:
        opened = Client()
        opened.force_login(cast[name])
        return opened

    return client


@pytest.fixture
def rita(page_of):
    return page_of("rita")


@pytest.fixture
def tom(page_of):
    return page_of("tom")


@pytest.fixture
def make(make_version):
    """Registers a version as a training leaves it: `accuracy` out of fold and its `config`."""

    def made(accuracy: float, **how):
        measured = {"n": 200, "accuracy": accuracy, "macro_f1": 0.5, "brier": 0.4}
        measured |= {"ece": 0.05, "log_loss": 0.9}
        metrics = {"out_of_fold": measured, "base": measured | {"accuracy": 0.4}}
        version = make_version(metrics=metrics | {"chosen_epoch": 2}, **how)
        version.evaluations.update(**figures())
        now = timezone.now()
        TrainingRun.objects.filter(pk=version.run_id).update(
            started_at=now - timedelta(seconds=95), finished_at=now, device="here:cpu"
        )
        return version

    return made


def other_verdicts() -> Snapshot:
    return Snapshot.objects.create(
        digest="9" * 64,
        rows=320,
        groups=61,
        label_counts={"supports": 200, "refutes": 120},
        verdict_counts={"corrected": 90, "confirmed": 230},
        left_out={},
    )


def shown(client, a, b):
    response = client.get(COMPARE, {"a": a, "b": b})
    assert response.status_code == 200
    return response


def row_of(response, name: str) -> str:
    """The words of the first row of this name in the tables of what is on record."""
    _, _, tables = response.content.decode().partition('aria-label="Serving of')
    for row in ROW.findall(tables):
        words = " ".join(re.sub(r"<[^>]+>", " ", row).split())
        if words.startswith(name):
            return words
    raise AssertionError(f"no row {name}")


def said(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


# --- What is shown --------------------------------------------------------------------------------


def test_two_versions_of_the_same_verdicts_are_held_against_each_other(rita, make, cast):
    promote(make(0.5, config={"rank": 8, "epochs": 6, "seed": 1}), cast["rita"])
    make(0.625, config={"rank": 16, "epochs": 6, "gone": 1})
    response = shown(rita, 1, 2)
    page = text_of(response)
    assert row_of(response, "Status") == "Status serving never served"
    assert re.search(r"Last put into service .*: promote by rita –", row_of(response, "Last put"))
    assert row_of(response, "Accuracy") == "Accuracy 50.0 % 62.5 % +12.5 points"
    assert "Both were measured on the same verdicts." in page
    assert row_of(response, "Took") == "Took 1 min 35 s 1 min 35 s"
    assert row_of(response, "Device") == "Device here:cpu here:cpu"
    assert row_of(response, "Epochs") == "Epochs 2 of at most 6 2 of at most 6"
    assert row_of(response, "Method") == "Method temperature scaling temperature scaling"
    assert row_of(response, "Change from the base") == (
        "Change from the base −1.0 points −1.0 points"
    )
    assert row_of(response, "rank") == "rank differs 8 16"
    assert row_of(response, "epochs") == "epochs 6 6"
    assert row_of(response, "seed") == "seed differs 1 –"
    assert row_of(response, "gone") == "gone differs – 1"
    assert "3 of 4 differ." in page


def test_figures_of_different_verdicts_are_said_not_to_compare(rita, make):
    make(0.5)
    make(0.625, snapshot=other_verdicts())
    response = shown(rita, 1, 2)
    page = text_of(response)
    assert "These figures do not compare. Each version was measured on the verdicts" in page
    assert "do not compare. The two calibrators were fitted and measured on different" in page
    assert "They learnt from different sets of verdicts." in page
    assert row_of(response, "Accuracy") == "Accuracy 50.0 % 62.5 %"  # and no difference
    assert "Difference" not in page
    assert row_of(response, "Sources") == "Sources 40 61"
    assert row_of(response, "Corrected") == "Corrected 0 90"
    assert row_of(response, "Label refutes") == "Label refutes 0 120"


def test_the_base_stands_beside_a_version_on_that_versions_verdicts(rita, make):
    make(0.5, config={"rank": 8})
    for a, b, accuracy in (
        ("base", 1, "Accuracy 40.0 % 50.0 % +10.0 points"),
        (1, "base", "Accuracy 50.0 % 40.0 % −10.0 points"),
    ):
        response = shown(rita, a, b)
        assert row_of(response, "Accuracy") == accuracy
        assert "The base was not trained here: it has no settings." in text_of(response)
        assert "differs" not in text_of(response)
        assert sorted(row_of(response, "Right").split()[1:]) == ["%", "%", "71.0", "72.0"]
        assert sorted(row_of(response, "rank").split()[1:]) == ["8", "–"]


def test_versions_of_before_that_recorded_little_have_a_page(rita, make_version):
    make_version().evaluations.update(guard={}, figures={})
    ShadowEvaluation.objects.update(candidate_calibration=None)
    CalibrationEvaluation.objects.all().delete()
    make_version()
    for a, b in ((1, 2), (2, 1), (1, "base"), ("base", 2)):
        assert "They are not on record of both" in text_of(shown(rita, a, b))


@pytest.mark.parametrize("swapped", [False, True])
def test_the_comparison_of_exactly_these_two_is_shown_in_either_direction(rita, make, swapped):
    first, second = make(0.5), make(0.6)
    make(0.7)
    page = text_of(shown(rita, 1, 2))
    assert "Nobody has compared v1 with v2 on the same verdicts." in page
    a, b = (second, first) if swapped else (first, second)
    compare(b, a, advice=["This is no evidence for a promotion: it did not serve."])
    compare(b, None, verdict="worse")
    for numbers in ((1, 2), (2, 1)):
        response = shown(rita, *numbers)
        page = text_of(response)
        assert f"{b} is better than {a}." in page
        assert f"{b} with calibrator c1, {a} with calibrator c1." in page
        assert "no evidence for a promotion: it did not serve" in page
        assert f"{VERSIONS}{b.pk}/change/?evaluation=" in response.content.decode()
    assert "Nobody has compared v1 with v3" in text_of(shown(rita, 1, 3))


def test_a_comparison_says_how_old_it_is(rita, make):
    compare(make(0.5), make(0.6))
    assert "No verdict was accepted since." in text_of(shown(rita, 1, 2))
    accept(2)
    Correction.objects.update(reviewed_at=timezone.now() + timedelta(hours=1))
    assert "2 verdicts were accepted since" in text_of(shown(rita, 1, 2))


def test_the_page_reads_as_often_with_many_comparisons_as_with_one(rita, make):
    first, second = make(0.5), make(0.6)

    def asked():
        with CaptureQueriesContext(connection) as found:
            shown(rita, 1, 2)
        return len(found)

    compare(first, second)
    asked()
    once = asked()
    for _ in range(3):
        compare(second, first)
    assert asked() == once


def test_the_page_needs_no_inline_script_and_names_its_controls(tom, make):
    first, second = make(0.5), make(0.6)
    compare(first, second)
    own_page = tom.get(f"{VERSIONS}{first.pk}/change/")
    for response in (shown(tom, 1, 2), tom.get(COMPARE), own_page):
        assert response.status_code == 200
        markup = Markup()
        markup.feed(response.content.decode())
        assert (markup.faults, markup.unlabelled()) == ([], [])


# --- How one gets there ---------------------------------------------------------------------------


def test_two_that_are_selected_in_the_list_are_compared(rita, make):
    versions = [make(0.5), make(0.6), make(0.7)]

    def act(*chosen):
        keys = [version.pk for version in chosen]
        return rita.post(VERSIONS, {"action": "compare", "_selected_action": keys})

    assert act(versions[2], versions[0]).url == f"{COMPARE}?a=1&b=3"
    for chosen in (versions[:1], versions):
        response = act(*chosen)
        assert said(response)[-1] == "Select two versions to compare."
        assert response.url == VERSIONS
    assert "Delete" not in text_of(rita.get(VERSIONS))


def test_a_versions_page_leads_to_any_other_and_to_the_base(rita, make):
    first, _ = make(0.5), make(0.6)
    html = rita.get(f"{VERSIONS}{first.pk}/change/").content.decode()
    form = re.search(rf'<form class="inline" action="{COMPARE}".*?</form>', html, flags=re.S)[0]
    assert 'name="b" value="1"' in form
    assert re.findall(r'<option value="(\w+)">([^<]+)<', form) == [
        ("2", "v2"),
        ("base", "the base"),
    ]


@pytest.mark.parametrize("query", ["", "a=1", "b=base", "a=&b=", "c=5"])
def test_without_two_the_page_lets_one_choose(rita, make, query):
    make(0.5)
    response = rita.get(f"{COMPARE}?{query}")
    assert response.status_code == 200
    assert "Compare two versions" in text_of(response)
    assert "Which one is better?" not in text_of(response)


ODD = ("9", "v", "-1", "1.0", "0", "²", "%00", "1%00", "9" * 25, "9" * 5_000, "1 OR 1=1", "../1")
MORE = ("%ff", "<script>", "Base", "{}", "1&b=2&b=x&a=x", "None")


@pytest.mark.parametrize("odd", ODD + MORE)
@pytest.mark.parametrize("key", ["a", "b"])
def test_what_is_no_version_is_not_found_and_named(rita, make, key, odd):
    make(0.5)
    rest = "b=1&a" if key == "a" else "a=1&b"
    response = rita.get(f"{COMPARE}?{rest}={odd}")
    assert response.status_code in {400, 404}
    assert "<script>" not in response.content.decode()
    if response.status_code == 404:
        assert "There is no adapter version" in text_of(response)


@pytest.mark.parametrize("query", ["a=1&b=1", "a=v1&b=1", "a=base&b=base"])
def test_a_version_beside_itself_is_told_to_be_none(rita, make, query):
    make(0.5)
    response = rita.get(f"{COMPARE}?{query}")
    assert response.status_code == 400
    assert "Choose two different versions." in text_of(response)


def test_the_page_is_for_those_who_see_releases_and_is_only_read(page_of, client, make):
    make(0.5), make(0.6)
    address = f"{COMPARE}?a=1&b=2"
    for who in ("tom", "rita", "ada"):
        assert page_of(who).get(address).status_code == 200
        assert page_of(who).post(address).status_code == 405
    for who in ("alice", "bob"):
        assert page_of(who).get(address).status_code == 403
    for stranger in (client, page_of("eve")):
        assert stranger.get(address).url.startswith("/admin/login/")


# --- Asking for a comparison ----------------------------------------------------------------------


def ask(client, response):
    """Press the page's button."""
    html = response.content.decode()
    form = re.search(r'<form[^>]*method="post" action="([^"]*/evaluate/)".*?</form>', html, re.S)
    against = re.search(r'name="against" value="([^"]*)"', form[0])[1]
    return client.post(form[1], {"against": against})


def test_a_trainer_has_the_two_compared_on_the_verdicts_of_now(tom, make, cast):
    first, second = make(0.5), make(0.6)
    response = shown(tom, 2, 1)
    assert "That is no evidence for a promotion, since v1 does not serve" in text_of(response)
    answer = ask(tom, response)
    run = TrainingRun.objects.get(kind="shadow")
    assert (run.version, run.against, run.requested_by) == (second, "v1", cast["tom"])
    assert answer.url == f"/admin/adapters_app/trainingrun/{run.pk}/change/"
    assert f"Run {run.pk} will compare v2 with v1." in said(answer)
    assert "shadow-evaluate a version v2 against v1" in text_of(tom.get(answer.url)).lower()
    assert f"{run.pk} · shadow v2 against v1" in text_of(
        tom.get("/admin/adapters_app/trainingrun/")
    )

    again = ask(tom, shown(tom, 1, 2))
    assert again.url == f"{COMPARE}?a=1&b=2"
    assert f"Run {run.pk} is queued and does the same" in said(again)[0]
    assert first.evaluations.count() == second.evaluations.count() == 1


def test_what_serves_is_what_the_other_is_measured_against(tom, make, cast):
    make(0.5)
    promote(make(0.6), cast["rita"])
    response = shown(tom, 1, 2)
    assert "That is evidence for a promotion of v1, since v2 serves." in text_of(response)
    ask(tom, response)
    run = TrainingRun.objects.get(kind="shadow")
    assert (run.version.number, run.against) == (1, "v2")
    ask(tom, shown(tom, 2, "base"))
    run = TrainingRun.objects.filter(kind="shadow").first()
    assert (run.version.number, run.against) == (2, "base")


def test_only_who_may_request_evaluations_has_the_button(rita, make):
    version = make(0.5)
    assert "Compare on the verdicts of now" not in text_of(shown(rita, 1, "base"))
    response = rita.post(f"{VERSIONS}{version.pk}/evaluate/", {"against": "base"})
    assert response.status_code == 403


@pytest.mark.parametrize("against", ["9", "x", "\0", "9" * 5_000, "the base"])
def test_what_cannot_be_compared_with_is_not_found(tom, make, against):
    version = make(0.5)
    response = tom.post(f"{VERSIONS}{version.pk}/evaluate/", {"against": against})
    assert response.status_code in {400, 404}
    assert not TrainingRun.objects.filter(kind="shadow").exists()


# --- No page takes it for evidence ----------------------------------------------------------------


def test_no_page_takes_a_comparison_with_another_for_the_evidence(rita, make, cast):
    first, second = make(0.5), make(0.6)
    compared = compare(second, first, verdict="worse")
    detail = f"{VERSIONS}{second.pk}/change/"
    page = text_of(rita.get(INDEX))
    assert "v2 is better than the base. Nobody has decided yet" in page
    assert "worse than v1" not in page
    assert re.search(r"v2 better Promote", text_of(rita.get(VERSIONS)))
    response = rita.get(detail)
    assert "v2 is better than the base." in text_of(response)
    assert response.context["evaluation"].incumbent_served
    assert "v2 against v1: worse (no evidence for a promotion: it did not serve)" in (
        text_of(response)
    )

    chosen = rita.get(f"{detail}?evaluation={compared.pk}")
    page = text_of(chosen)
    assert "v2 is worse than v1." in page
    assert "no longer serves" not in page
    assert f'href="{COMPARE}?a=1&amp;b=2"' in chosen.content.decode()

    out = io.StringIO()
    call_command("adapters", "--json", stdout=out)
    told = json.loads(out.getvalue().splitlines()[-1])["versions"]
    assert [version["verdict"] for version in told] == ["better", "better"]

    promote(first, cast["rita"])
    page = text_of(rita.get(f"{VERSIONS}{second.pk}/promote/"))
    assert "Nothing compares v2 with v1, which serves now." in page
