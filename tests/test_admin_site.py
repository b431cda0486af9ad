"""Every page of the admin, whoever registered its model: no address and no form is a crash, on
SQLite as on PostgreSQL, which each refuse other values."""

import json
import re
from html import unescape
from types import SimpleNamespace
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import pytest
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.files.base import ContentFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from adapters_app.models import LearningCurve, Promotion, Study
from corrections.intake import record_correction
from corrections.models import AuditSample, Correction
from tests.versions import register

NUL, LARGE, LONG = "%00", "9" * 25, "9" * 5_000
REFUSED = {302, 400}  # the whole list with ?e=1, or a bad request
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(
    params=[
        pytest.param("db", marks=pytest.mark.django_db, id="sqlite"),
        pytest.param("on_postgresql", id="postgresql"),
    ]
)
def ada(request):
    """Ada, signed in on each of the databases, who may see all; every list has a row."""
    request.getfixturevalue(request.param)
    user = User.objects.create_superuser("ada", password="correct horse")
    fill(user)
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


def fill(by):
    texts = {"premise": "Ward 4 saw fever.", "hypothesis": "There was fever."}
    predicted = {"predicted_label": "neutral", "predicted_confidence": 0.6}
    record_correction(by=by, **texts, **predicted, correct_label="supports")
    AuditSample.objects.create(
        **texts,
        predicted_label="neutral",
        raw_confidence=0.6,
        confidence=0.6,
        probability=0.1,
        drawn_at=timezone.now(),
    )
    version = register(by, 1, "d" * 64, SimpleNamespace(name="tiny", fingerprint="f" * 64))
    Promotion.objects.create(action="promote", version=version, revision=1, reason="better", by=by)
    made = {"base_name": "tiny", "rows": 9, "groups": 3, "seconds": 1.0, "created_by": by}
    LearningCurve.objects.create(
        **made,
        snapshot=version.snapshot,
        config={},
        points=[],
        projections={"accuracy": {"sentence": "More would help."}},
    )
    Study.objects.create(**made, data="pairs.jsonl", config={"fits": 90})


def lists():
    """(model, address of its list) of all that is registered."""
    for model in admin.site._registry:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        yield model, reverse(f"admin:{name}_changelist")


def crashes(answers):
    """The addresses that were answered with 500, or with 503, as though the database were away."""
    return [
        (address, answer.status_code) for address, answer in answers if answer.status_code >= 500
    ]


def test_every_list_has_a_row_that_a_query_is_held_against(ada):
    for model, address in lists():
        if model is Group:
            continue  # the roles
        assert model.objects.exists(), model
        assert ada.get(address).status_code == 200, address
        assert ada.get(f"{address}?o=1.-2&p=1&q=x&_facets=1").status_code == 200, address


def test_every_page_writes_a_time_alike(client, db):
    user = User.objects.create_superuser("ada")
    client.force_login(user)
    fill(user)
    correction, sample = Correction.objects.get(), AuditSample.objects.get()
    details = [
        reverse("admin:corrections_correction_change", args=[correction.pk]),
        reverse("admin:corrections_auditsample_change", args=[sample.pk]),
        reverse("admin:adapters_app_adapterversion_change", args=[1]),
        reverse("tokens"),
    ]
    client.post(reverse("tokens"), {"days": 30})
    for address in [*(address for _, address in lists()), *details]:
        page = client.get(address).content.decode()
        shown = re.sub(r"<[^>]+>", "", page)
        assert not re.findall(r"[ap]\.m\.|\d{4}-\d\d-\d\d", shown), address
        assert not re.findall(r"\d [A-Z][a-z]{2} \d{4}", shown), address  # it could end a line


@pytest.mark.parametrize("odd", [NUL, LARGE, "(", "0", "9999-12-31T23:59-12:00"])
def test_no_lookup_of_any_kind_of_column_is_a_crash(ada, odd):
    lookups = ("exact", "in", "regex", "iregex", "range", "gte", "contains", "year")
    asked = [
        f"{address}?{field.name}__{lookup}={odd}"
        for model, address in lists()
        for field in {type(field): field for field in model._meta.concrete_fields}.values()
        for lookup in lookups
    ]
    assert crashes((address, ada.get(address)) for address in asked) == []


@pytest.mark.parametrize("odd", [NUL, LARGE, LONG, "-1", "x.-", "%ED%A0%80"])
def test_no_search_page_order_or_popup_is_a_crash(ada, odd):
    names = ("q", "p", "o", "all", "e", "_facets", "_popup", "_to_field", "pk__in", "a__b", NUL)
    asked = [f"{address}?{name}={odd}" for _, address in lists() for name in names]
    assert crashes((address, ada.get(address)) for address in asked) == []


def test_a_pasted_page_of_text_is_searched_for(ada):
    # SQLite nests no more than a thousand conditions; a request line holds two thousand words.
    words = "+".join(["fever"] * 2_000)
    for _, address in lists():
        assert ada.get(f"{address}?q={words}").status_code == 200
    found = ada.get(f"{reverse('admin:corrections_correction_changelist')}?q={words}")
    assert [row.premise for row in found.context["cl"].result_list] == ["Ward 4 saw fever."]


@pytest.mark.parametrize(
    "query",
    [
        "adapters_app/trainingrun/?status__exact=%00",
        "adapters_app/promotion/?reason=%00",
        "corrections/sourcegroup/?key=%00",
        "corrections/correction/?premise__regex=(",
        "corrections/correction/?corrected_at__year=0",
        "auth/user/?username=%00",
        "auth/user/?id__range=1",
    ],
)
def test_a_lookup_that_is_none_is_refused(ada, query):
    assert ada.get(f"/admin/{query}").status_code in REFUSED


@pytest.mark.parametrize("lookup", ["exact", "startswith", "gt", "in", "isnull", "key"])
def test_a_list_is_narrowed_by_nothing_that_it_does_not_offer(ada, lookup):
    asked = []
    for model, address in lists():
        shown = admin.site._registry[model]
        offered = {item[0] if isinstance(item, tuple) else item for item in shown.list_filter}
        linked = getattr(shown, "linked_by", ())
        asked += [
            f"{address}?{field.name}__{lookup}=1"
            for field in model._meta.concrete_fields
            if field.name not in offered and f"{field.name}__{lookup}" not in linked
        ]
    assert [address for address in asked if ada.get(address).status_code != 400] == []


@pytest.mark.parametrize(
    "query",
    [
        "predicted_label=refutes",
        "confidence__gt=0.9",
        "raw_confidence__lt=0.5",
        "disagrees__exact=1",
        "sampling=disagreement",
        "probability__gt=0.6",
        "premise__startswith=W",
    ],
)
def test_no_curator_asks_what_the_model_said_before_they_judge(client, curator, query):
    fill(curator)
    client.force_login(curator)
    samples = reverse("admin:corrections_auditsample_changelist")

    assert client.get(f"{samples}?{query}").status_code == 400
    # From a sample's page back to its list, as Django's pages remember it.
    assert client.get(f"{samples}?state=waiting&{query}").status_code == 400
    assert client.get(f"{samples}?state=waiting&o=1.2.3").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "metrics__annotators__0__annotator__startswith=a",
        "metrics__has_key=annotators",
        "metrics__contains=a",
        "metrics__gte=0",
    ],
)
def test_no_trainer_asks_letter_by_letter_what_is_said_of_annotators(client, trainer, query):
    tiny = SimpleNamespace(name="tiny", fingerprint="f" * 64)
    register(trainer, 1, "d" * 64, tiny, metrics={"annotators": [{"annotator": "ana"}]})
    client.force_login(trainer)

    assert client.get("/admin/adapters_app/adapterversion/").status_code == 200
    assert client.get(f"/admin/adapters_app/adapterversion/?{query}").status_code == 400


def test_every_list_that_a_page_links_to_is_there(ada):
    pages = {address for _, address in lists()}
    shown = ["/admin/", "/admin/adapters_app/adapterversion/labels/", *pages]
    shown += [reverse("admin:corrections_correction_change", args=[Correction.objects.get().pk])]
    linked = set()
    for page in shown:
        for link in re.findall(r'href="([^"#]*\?[^"#]*)', ada.get(page).content.decode()):
            address = urljoin(page, unescape(link))
            linked |= {address} if address.partition("?")[0] in pages else set()

    assert [address for address in linked if ada.get(address).status_code != 200] == []
    narrowed = {name for address in linked for name in parse_qs(urlsplit(address).query)}
    assert {"status__exact", "conflict", "drawn_at__gte", "state", "group", "fold"} <= narrowed


def test_a_file_is_imported_and_its_rows_are_listed(ada):
    page = "/admin/corrections/correction/import/"
    verdict = {
        "premise": "Ward 5 was shut.",
        "hypothesis": "It was open.",
        "correct_label": "refutes",
    }
    verdict |= {"predicted_label": "neutral", "predicted_confidence": 0.5}

    def send(**step: str):
        return ada.post(page, {"file": ContentFile(json.dumps(verdict), "a.jsonl"), **step})

    checked = send(step="check").context["checked"]
    imported = send(step="import", checked=checked.seal)
    listed = ada.get(imported["Location"]).context["cl"]
    assert [row.premise for row in listed.result_list] == ["Ward 5 was shut."]
    assert Correction.objects.count() == 2


def test_a_list_that_breaks_by_itself_is_not_passed_off_as_a_bad_lookup(client, db, monkeypatch):
    client.force_login(User.objects.create_superuser("ada"))

    def broken(self, request):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(GroupAdmin, "get_queryset", broken, raising=False)
    for query in ("", "?e=1"):
        with pytest.raises(ValueError, match="a mistake of ours"):
            client.get(f"/admin/auth/group/{query}")


@pytest.mark.parametrize("odd", [NUL, LARGE, LONG, "x", "_00"])
def test_no_address_of_a_row_is_a_crash(ada, odd):
    pages = ("", "change/", "history/", "delete/", "password/", "promote/", "change/?_to_field=key")
    asked = [f"{address}{odd}/{page}" for _, address in lists() for page in pages]
    asked += [f"/admin/auth/user/{odd}/change/?_to_field=username", f"/admin/{odd}/"]
    asked += [
        f"/admin/r/{kind.pk}/{odd}/"
        for kind in ContentType.objects.get_for_models(User, Correction, Session).values()
    ]
    assert crashes((address, ada.get(address)) for address in asked) == []
    assert crashes((address, ada.post(address)) for address in asked) == []


@pytest.mark.parametrize("odd", [NUL, "(", LONG, "+".join(["x"] * 2_000)])
def test_no_term_to_complete_is_a_crash(ada, odd):
    source = {"app_label": "auth", "model_name": "user", "field_name": "groups"}
    asked = [f"/admin/autocomplete/?term={odd}&{urlencode(source)}"]
    asked += [
        f"/admin/autocomplete/?term=x&{urlencode(source | {name: ''})}{odd}" for name in source
    ]
    assert crashes((address, ada.get(address)) for address in asked) == []


@pytest.mark.parametrize("odd", ["\0", LARGE, LONG, "x", "-1"])
def test_no_choice_of_rows_is_a_crash(ada, odd):
    body = urlencode({"action": "delete_selected", "_selected_action": odd, "post": "yes"})
    answers = [(address, ada.post(address, body, FORM)) for _, address in lists()]
    assert crashes(answers) == []
    assert User.objects.count() == 1


@pytest.mark.parametrize("odd", ["\0", LARGE, LONG])
def test_no_text_in_a_form_is_a_crash(ada, odd):
    answers = []
    for model, address in lists():
        names = [field.name for field in model._meta.get_fields()]
        body = dict.fromkeys([*names, "password1", "password2", "_popup", "_to_field"], odd)
        for page in ("add/", "1/change/", "1/password/"):
            answers.append((f"{address}{page}", ada.post(f"{address}{page}", body)))
    assert crashes(answers) == []


def test_no_account_to_sign_in_with_is_a_crash(ada):
    visitor = Client(raise_request_exception=False)
    for name, password in (("\0", "x"), ("ada", "\0"), ("x" * 50_000, "x"), (LONG, LONG)):
        answer = visitor.post(
            "/admin/login/?next=%00", {"username": name, "password": password, "next": "\0"}
        )
        assert answer.status_code == 200
        assert answer.context["form"].errors


@pytest.mark.parametrize("path", ["/admin/", "/admin/login/", "/api/v1/adapters", "/tokens"])
def test_no_cookie_is_a_crash(ada, path):
    visitor = Client(raise_request_exception=False, headers={"Cookie": r'sessionid="a\000bcdefgh"'})
    assert (visitor.get(path).status_code, visitor.post(path).status_code) == (400, 400)
