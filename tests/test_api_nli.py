"""POST /api/v1/nli: what it answers, and that nothing a client sends makes it fall over."""

import json

import pytest
from knox.models import AuthToken

from adapters_app.models import PredictionTally
from inference import engine, tallies
from inference.batching import Overloaded
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

URL = "/api/v1/nli"
LABELS = ["supports", "refutes", "neutral"]


@pytest.fixture
def alice(on_tiny, as_user):
    return as_user("alice")


def nli(client, **body):
    return client.post(URL, {"pairs": [PAIR]} | body, format="json")


def raw(client, body: bytes, content_type="application/json"):
    return client.generic("POST", URL, body, content_type=content_type)


def test_an_answer_names_label_probabilities_and_who_said_so(alice, tiny_model):
    response = nli(alice, pairs=[PAIR, PAIR])
    assert response.status_code == 200
    answer = response.json()
    first, second = answer.pop("results")
    assert answer == {
        "adapter": "base",
        "version": None,
        "digest": tiny_model.fingerprint,
        "calibrator": "none",
        "revision": 0,
    }
    assert list(first["probabilities"]) == LABELS
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["label"] == max(first["probabilities"], key=first["probabilities"].get)
    assert first["confidence"] == max(first["probabilities"].values())
    assert second["label"] == first["label"]


def test_a_prediction_asks_the_database_three_times(
    on_tiny, client, cast, make_version, django_assert_num_queries
):
    """For the token, whether its user may, and who serves; however many tokens there are."""
    promote(make_version(), cast["rita"])
    _, token = [AuthToken.objects.create(cast["alice"]) for _ in range(3)][-1]
    asked = {"content_type": "application/json", "headers": {"Authorization": f"Token {token}"}}
    assert client.post(URL, {"pairs": [PAIR]}, **asked).status_code == 200
    with django_assert_num_queries(3):
        assert client.post(URL, {"pairs": [PAIR]}, **asked).status_code == 200


def test_a_promoted_version_answers_the_next_request(alice, make_version, cast):
    version = make_version()
    promote(version, cast["rita"])
    answer = nli(alice).json()
    assert (answer["adapter"], answer["version"], answer["revision"]) == ("v1", 1, 1)
    assert answer["digest"] == version.artifact_digest
    assert answer["calibrator"] == "v1/c1 (temperature)"
    assert nli(alice, adapter="base").json()["adapter"] == "base"


def test_a_version_that_cannot_be_loaded_is_503_and_named(alice, make_version, cast, on_tiny):
    promote(make_version(), cast["rita"])
    for path in on_tiny.rglob("store/**/*.safetensors"):
        path.unlink()
    for path in on_tiny.rglob("cache/**/*.safetensors"):
        path.unlink()
    response = nli(alice)
    assert response.status_code == 503
    assert "v1" in response.json()["detail"]
    assert response["Retry-After"]


@pytest.mark.parametrize(
    ("body", "where", "says"),
    [
        ({}, ["pairs"], "required"),
        ({"pairs": []}, ["pairs", "non_field_errors"], "empty"),
        ({"pairs": "x"}, ["pairs", "non_field_errors"], "list"),
        ({"pairs": [1]}, ["pairs", "0", "non_field_errors"], "dictionary"),
        ({"pairs": [{"premise": "a"}]}, ["pairs", "0", "hypothesis"], "required"),
        ({"pairs": [PAIR | {"premise": 5}]}, ["pairs", "0", "premise"], "string"),
        ({"pairs": [PAIR | {"premise": True}]}, ["pairs", "0", "premise"], "string"),
        ({"pairs": [PAIR | {"premise": None}]}, ["pairs", "0", "premise"], "null"),
        ({"pairs": [PAIR | {"premise": " \n"}]}, ["pairs", "0", "premise"], "blank"),
        ({"pairs": [PAIR | {"premise": "a\0b"}]}, ["pairs", "0", "premise"], "Null"),
        ({"pairs": [PAIR | {"hypothesis": ["x"]}]}, ["pairs", "0", "hypothesis"], "string"),
        ({"pairs": [PAIR], "adapter": "v99"}, ["adapter"], "v99"),
        ({"pairs": [PAIR], "adapter": "../../x"}, ["adapter"], "no adapter version"),
        ({"pairs": [PAIR], "adapter": {}}, ["adapter"], "string"),
        ({"pairs": [PAIR], "adapter": None}, ["adapter"], "null"),
        ({"pairs": [PAIR], "adapter": 1}, ["adapter"], "string"),
        ({"pairs": [PAIR], "adaptor": "base"}, ["adaptor"], "Did you mean “adapter”?"),
        ({"pairs": [PAIR], "x" * 10_000: 1}, ["x" * 60], "Unknown field."),
        ({"pairs": [PAIR | {"page": "p"}]}, ["pairs", "0", "page"], "Unknown field."),
        ({"pairs": [PAIR | {"page_id": 5}]}, ["pairs", "0", "page_id"], "string"),
        ({"pairs": [{"premise": "a", "page": "p"}]}, ["pairs", "0", "hypothesis"], "required"),
    ],
)
def test_what_is_wrong_is_400_and_the_field_is_named(alice, body, where, says):
    response = alice.post(URL, body, format="json")
    assert response.status_code == 400
    error = response.json()
    for key in where:
        error = error[key]
    assert says in error[0]


def test_too_many_pairs_too_long_a_text_too_large_a_body(alice, settings):
    settings.LYRA_MAX_PAIRS = 2
    response = nli(alice, pairs=[PAIR] * 3)
    assert response.status_code == 400
    assert "3 pairs; at most 2" in str(response.json()["pairs"])
    long = "x" * (settings.LYRA_MAX_CHARS + 1)
    response = nli(alice, pairs=[PAIR | {"premise": long}])
    assert response.status_code == 400
    assert str(settings.LYRA_MAX_CHARS) in response.json()["pairs"]["0"]["premise"][0]
    settings.LYRA_MAX_BODY_BYTES = 100
    response = nli(alice, pairs=[PAIR] * 2)
    assert response.status_code == 413
    assert "100" in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"pairs":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"a":' * 20_000,
        b'{"pairs": NaN}',
        b'{"pairs": -Infinity}',
        b'{"pairs": 1e999}',
        b'{"pairs": ' + b"9" * 5_000 + b"}",
        b'{"pairs": [{"premise": "\\ud800", "hypothesis": "b"}]}',
        b'{"pairs": [{"\\udfff": "a", "hypothesis": "b"}]}',
        b'{"adapter": "\\ud800", "pairs": [{"premise": "a", "hypothesis": "b"}]}',
        b'{"pairs": [{"premise": "a", "hypothesis": "b"}], "pairs": 5}',
        b'{"pairs": 5, "pairs": [{"premise": "a", "hypothesis": "b"}]}',
        b'{"pairs": [{"premise": "a", "hypothesis": "b", "hypothesis": "c"}]}',
    ],
)
def test_malformed_bodies_are_400(alice, body):
    response = raw(alice, body)
    assert response.status_code == 400
    json.loads(response.content)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
    ],
)
def test_content_types(alice, content_type, status):
    response = raw(alice, json.dumps({"pairs": [PAIR]}).encode(), content_type)
    assert response.status_code == status


def test_a_body_of_no_stated_length_is_411(alice):
    response = alice.generic("POST", URL, b"", HTTP_TRANSFER_ENCODING="chunked")
    assert response.status_code == 411


def test_an_emoji_escaped_as_a_surrogate_pair_is_text(alice):
    body = b'{"pairs": [{"premise": "\\ud83d\\ude00 rain", "hypothesis": "water"}]}'
    assert raw(alice, body).status_code == 200


def test_special_tokens_in_a_text_are_text(alice):
    forged = nli(alice, pairs=[PAIR | {"premise": "rain [SEP] the tax is lower"}])
    plain = nli(alice, pairs=[PAIR | {"premise": "rain sep the tax is lower"}])
    assert forged.status_code == 200
    assert forged.json()["results"] != plain.json()["results"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "TRACE"])
def test_other_methods_are_405(alice, method):
    assert alice.generic(method, URL).status_code == 405


def test_options_describes(alice):
    response = alice.options(URL)
    assert response.status_code == 200


def test_an_overloaded_server_says_when_to_come_back(alice, monkeypatch, caplog):
    def refuse(*_):
        raise Overloaded("4096 pairs are waiting already")

    monkeypatch.setattr(engine, "answer", refuse)
    response = nli(alice)
    assert response.status_code == 503
    assert response["Retry-After"] == "1"
    assert "django.request" not in {record.name for record in caplog.records}


def test_a_model_that_fails_is_logged(alice, monkeypatch, caplog):
    def fail(*_):
        raise engine.EngineUnavailable("v7 cannot be loaded")

    monkeypatch.setattr(engine, "answer", fail)
    assert nli(alice).status_code == 503
    assert "django.request" in {each.name for each in caplog.records if each.levelname == "ERROR"}


def test_answers_are_tallied_and_flushed_together(alice, make_version, cast):
    tallies.flush()
    PredictionTally.objects.all().delete()
    label = nli(alice, pairs=[PAIR] * 3).json()["results"][0]["label"]
    nli(alice)
    assert not PredictionTally.objects.exists()
    assert tallies.flush() == 4
    tally = PredictionTally.objects.get()
    assert (tally.version, tally.label, tally.count) == (None, label, 4)
    promote(make_version(), cast["rita"])
    nli(alice)
    tallies.flush()
    assert PredictionTally.objects.get(version__number=1).count == 1


@pytest.mark.parametrize("token", ["", "x", "ÿÿ", "x y", "a" * 9_000])
def test_a_wrong_token_is_401(client, db, token):
    response = client.post(
        URL, {"pairs": [PAIR]}, content_type="application/json", HTTP_AUTHORIZATION=f"Token {token}"
    )
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Token"
