"""The upstream's contract, as its client uses it, under / and under /ml/."""

import json
from pathlib import Path

import numpy as np
import pytest
from django.test import Client

from adapters_app import registry
from adapters_app.models import PredictionTally, Promotion
from corrections.labels import LABELS
from inference import engine, tallies
from inference.batching import Overloaded
from lyra_site.urls import UPSTREAM
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

UPSTREAM_PAIR = {
    "pair_id": "e1",
    "premise": PAIR["premise"],
    "nli_hypothesis": PAIR["hypothesis"],
}


@pytest.fixture(params=["", "/ml"])
def prefix(request):
    return request.param


@pytest.fixture
def opened(settings, on_tiny, db, client):
    """LYRA_COMPAT_OPEN and a client on the loopback, as the upstream's is: no token, no cookies."""
    settings.LYRA_COMPAT_OPEN = True
    return client


def post(client, path, body=None, **extra):
    if body is None:
        return client.generic("POST", path, b"", content_type="", **extra)
    return client.post(path, json.dumps(body), content_type="application/json", **extra)


def test_what_a_client_sends_besides_is_its_own_affair(opened, prefix):
    pairs = [UPSTREAM_PAIR | {"score": 1}]
    assert post(opened, f"{prefix}/nli", {"pairs": pairs, "model": "x"}).json()["ok"] is True
    twice = '{"pairs": 5, "pairs": ' + json.dumps(pairs) + "}"
    told = opened.post(f"{prefix}/nli", twice, content_type="application/json")
    assert told.json()["ok"] is True


def test_health_answers_everybody(client, on_tiny, prefix):
    response = client.get(f"{prefix}/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "models_loaded": {"embedding": False, "nli": False},
    }


def test_warmup_loads_both_models_without_a_body(opened, prefix):
    assert post(opened, f"{prefix}/warmup").json() == {"ok": True, "message": "All models loaded"}
    assert opened.get("/health").json()["models_loaded"] == {"embedding": True, "nli": True}


def test_nli_answers_in_order_with_raw_confidence(opened, prefix):
    pairs = [UPSTREAM_PAIR, {"premise": "rain", "nli_hypothesis": "water"}]
    body = post(opened, f"{prefix}/nli", {"pairs": pairs}).json()
    assert list(body) == ["ok", "results", "error"]
    assert body["ok"] is True
    assert body["error"] is None
    assert [result["pair_id"] for result in body["results"]] == ["e1", "unknown"]
    expected = engine.answer("base", [(PAIR["premise"], PAIR["hypothesis"]), ("rain", "water")])
    for result, told in zip(expected.results, body["results"], strict=True):
        assert list(told) == ["pair_id", "label", "confidence", "raw_label"]
        assert told["label"] == result.raw_label
        assert told["confidence"] == pytest.approx(result.raw_confidence, abs=1e-5)


def test_confidence_stays_raw_when_a_calibrated_version_serves(opened, make_version, cast):
    promote(make_version(temperature=5.0), cast["rita"])
    told = post(opened, "/nli", {"pairs": [UPSTREAM_PAIR]}).json()["results"][0]
    result = engine.answer("active", [(PAIR["premise"], PAIR["hypothesis"])]).results[0]
    assert told["confidence"] == pytest.approx(result.raw_confidence, abs=1e-5)
    assert told["confidence"] > result.confidence


def test_the_label_that_was_told_is_the_one_that_is_counted(opened, make_version, cast):
    """The calibrator would have said another; upstream is told the raw one."""
    version = make_version()
    raw = engine.answer("base", [(PAIR["premise"], PAIR["hypothesis"])]).results[0].raw_label
    offsets = [-9.0 if label == raw else 4.5 for label in LABELS]
    version.calibrations.update(method="bcts", parameters={"temperature": 1.0, "offsets": offsets})
    promote(version, cast["rita"])
    tallies.flush()
    told = post(opened, "/nli", {"pairs": [UPSTREAM_PAIR]}).json()["results"][0]["label"]
    calibrated = engine.answer("active", [(PAIR["premise"], PAIR["hypothesis"])]).results[0].label
    assert told != calibrated
    tallies.flush()
    assert [each.label for each in PredictionTally.objects.filter(version=version)] == [told]


def test_no_pairs_is_an_empty_answer(opened):
    assert post(opened, "/nli", {"pairs": []}).json() == {"ok": True, "results": [], "error": None}


def test_blank_and_odd_texts_are_answered(opened):
    odd = [UPSTREAM_PAIR | {"premise": text} for text in ("", " ", "a\0b", "😀", "x" * 10_000)]
    body = post(opened, "/nli", {"pairs": odd}).json()
    assert body["ok"] is True
    assert len(body["results"]) == 5


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        ({}, "missing", ["body", "pairs"]),
        ([], "model_attributes_type", ["body"]),
        ({"pairs": 5}, "list_type", ["body", "pairs"]),
        ({"pairs": [5]}, "model_attributes_type", ["body", "pairs", 0]),
        ({"pairs": [{"premise": "a"}]}, "missing", ["body", "pairs", 0, "nli_hypothesis"]),
        (
            {"pairs": [UPSTREAM_PAIR | {"premise": 5}]},
            "string_type",
            ["body", "pairs", 0, "premise"],
        ),
        (
            {"pairs": [UPSTREAM_PAIR | {"pair_id": None}]},
            "string_type",
            ["body", "pairs", 0, "pair_id"],
        ),
    ],
)
def test_wrong_input_is_422_with_what_and_where(opened, body, kind, loc):
    response = post(opened, "/nli", body)
    assert response.status_code == 422
    (fault,) = response.json()["detail"]
    assert (fault["type"], fault["loc"]) == (kind, loc)
    assert fault["msg"]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 100_000, b'{"pairs": NaN}', b'{"a":"\\ud800"}']
)
def test_malformed_json_is_422(opened, body):
    response = opened.generic("POST", "/nli", body, content_type="application/json")
    assert response.status_code == 422
    assert response.json()["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", ""])
def test_what_a_web_page_could_post_blindly_is_422(opened, content_type):
    body = json.dumps({"pairs": []})
    response = opened.generic("POST", "/nli", body, content_type=content_type)
    assert response.status_code == 422


def test_too_many_pairs_and_too_long_texts_are_422(opened, settings):
    settings.LYRA_MAX_PAIRS = 2
    response = post(opened, "/nli", {"pairs": [UPSTREAM_PAIR] * 3})
    assert response.json()["detail"][0]["loc"] == ["body", "pairs"]
    settings.LYRA_MAX_CHARS = 3
    response = post(opened, "/nli", {"pairs": [UPSTREAM_PAIR]})
    assert response.status_code == 422


def test_embed_answers_unit_vectors(opened, prefix):
    body = post(opened, f"{prefix}/embed", {"texts": ["rain", "tax"], "batch_size": 1}).json()
    assert (body["ok"], body["error"]) == (True, None)
    np.testing.assert_allclose(np.linalg.norm(body["embeddings"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, 65, "8", True, None, 1.5])
def test_embed_refuses_batch_sizes(opened, batch_size):
    response = post(opened, "/embed", {"texts": ["x"], "batch_size": batch_size})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "batch_size"]


def test_embed_of_nothing(opened):
    body = post(opened, "/embed", {"texts": []}).json()
    assert body == {"ok": True, "embeddings": [], "error": None}


def test_a_server_side_fault_is_200_and_not_ok(opened, settings, on_tiny: Path):
    settings.LYRA_BASE_MODEL = str(on_tiny / "gone")
    response = post(opened, "/nli", {"pairs": [UPSTREAM_PAIR]})
    assert response.status_code == 200
    body = response.json()
    assert (body["ok"], body["results"]) == (False, [])
    assert "base model" in body["error"]


FAULTS = [
    RuntimeError("CUDA out of memory"),
    OSError("no such device"),
    MemoryError("cannot allocate"),
    ValueError("bad file"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_failing_encoder_is_200_and_not_ok(opened, monkeypatch, fault):
    monkeypatch.setattr(engine._models.encoder(), "_forward", failing(fault))
    response = post(opened, "/embed", {"texts": ["x"]})
    assert response.status_code == 200
    body = response.json()
    assert (body["ok"], body["embeddings"]) == (False, [])
    assert str(fault) in body["error"]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize(("path", "said"), [("/embed", "error"), ("/warmup", "message")])
def test_an_encoder_that_cannot_be_loaded_is_200_and_not_ok(opened, monkeypatch, path, said, fault):
    monkeypatch.setattr(engine._torch_side().embedding, "SentenceEncoder", failing(fault))
    response = post(opened, path, {"texts": ["x"]})
    assert response.status_code == 200
    body = response.json()
    assert body["ok"] is False
    assert f"sentence encoder cannot be loaded: {fault}" in body[said]


def test_a_base_there_is_no_memory_for_is_200_and_not_ok(opened, monkeypatch):
    fault = MemoryError("cannot allocate")
    monkeypatch.setattr(engine._torch_side().base_model, "load_base", failing(fault))
    body = post(opened, "/warmup").json()
    assert body["ok"] is False
    assert "cannot allocate" in body["message"]


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [("/nli", {"pairs": [UPSTREAM_PAIR]}, "answer"), ("/embed", {"texts": ["x"]}, "embed")],
)
def test_an_overload_passes_so_it_is_the_status_that_the_client_repeats(
    opened, monkeypatch, prefix, path, body, asked
):
    monkeypatch.setattr(engine, asked, failing(Overloaded("4096 pairs are waiting already")))
    response = post(opened, f"{prefix}{path}", body)
    assert response.status_code == 503
    assert response["Retry-After"] == "1"
    assert "4096 pairs" in response.json()["detail"]


def failing(fault: Exception):
    def fail(*_, **__):
        raise fault

    return fail


# --- load, unload, status -------------------------------------------------------------------------


def test_load_promotes_and_unload_rolls_back_to_the_base(as_user, make_version, prefix):
    rita, version = as_user("rita"), make_version()
    status = f"{prefix}/nli/adapter/status"
    loaded = rita.post(f"{prefix}/nli/adapter/load", {"adapter_path": "v1"}, format="json").json()
    assert (loaded["ok"], loaded["adapter_path"]) == (True, "v1")
    assert rita.get(status).json() == {
        "adapter_loaded": True,
        "adapter_path": "v1",
        "base_model": version.base_name,
    }
    unloaded = post(rita, f"{prefix}/nli/adapter/unload").json()
    assert unloaded["ok"] is True
    assert rita.get(status).json()["adapter_path"] is None
    assert [entry.action for entry in Promotion.objects.order_by("id")] == ["promote", "rollback"]
    assert Promotion.objects.first().by.username == "rita"


def test_load_without_a_name_takes_the_last_promoted_version(as_user, make_version, cast):
    rita = as_user("rita")
    refused = post(rita, "/nli/adapter/load").json()
    assert (refused["ok"], refused["adapter_path"]) == (False, None)
    promote(make_version(), cast["rita"])
    registry.rollback(by=cast["rita"], reason="test", to="base")
    assert post(rita, "/nli/adapter/load", {}).json()["adapter_path"] == "v1"


def test_loading_what_serves_and_unloading_the_base_change_nothing(as_user, make_version, cast):
    rita = as_user("rita")
    assert post(rita, "/nli/adapter/unload").json()["ok"] is True
    promote(make_version(), cast["rita"])
    assert post(rita, "/nli/adapter/load", {"adapter_path": "1"}).json()["ok"] is True
    assert Promotion.objects.count() == 1


@pytest.mark.parametrize("body", [b"[]", b"0", b"false", b'""', b"null", b"[1]", b'"v1"'])
def test_a_body_that_is_no_object_is_422_and_promotes_nothing(as_user, make_version, cast, body):
    promote(make_version(), cast["rita"])
    registry.rollback(by=cast["rita"], reason="test", to="base")
    response = as_user("rita").generic(
        "POST", "/nli/adapter/load", body, content_type="application/json"
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body"]
    assert registry.serving().version is None


def test_an_empty_name_is_no_version_rather_than_the_last_one(as_user, make_version, cast):
    promote(make_version(), cast["rita"])
    registry.rollback(by=cast["rita"], reason="test", to="base")
    assert post(as_user("rita"), "/nli/adapter/load", {"adapter_path": ""}).json()["ok"] is False
    assert registry.serving().version is None


@pytest.mark.parametrize("name", ["v99", "../../etc/passwd", "/srv/adapter", "x\0", "http://h/x"])
def test_a_path_or_an_unknown_name_is_refused(as_user, make_version, name):
    body = post(as_user("rita"), "/nli/adapter/load", {"adapter_path": name}).json()
    assert (body["ok"], body["adapter_path"]) == (False, None)
    assert "no adapter version" in body["message"]


def test_a_refusal_of_the_gate_is_200_with_its_reason(as_user, make_version):
    make_version(verdict="worse")
    response = post(as_user("rita"), "/nli/adapter/load", {"adapter_path": "v1"})
    assert response.status_code == 200
    assert "worse" in response.json()["message"]


@pytest.mark.parametrize("path", ["/nli/adapter/load", "/nli/adapter/unload"])
def test_releasing_needs_a_releaser_even_through_the_open_door(opened, as_user, make_version, path):
    make_version()
    for client in (opened, as_user("alice"), as_user("tom")):
        response = post(client, path)
        assert response.status_code == 200
        assert response.json()["ok"] is False
        assert "promote" in response.json()["message"]
    assert not Promotion.objects.exists()


# --- the door -------------------------------------------------------------------------------------


def test_closed_by_default(client, on_tiny, db, prefix):
    for path in ("nli", "embed", "warmup", "nli/adapter/load", "nli/adapter/unload"):
        assert post(client, f"{prefix}/{path}", {}).status_code == 401
    assert client.get(f"{prefix}/nli/adapter/status").status_code == 401


def test_a_token_opens_it(as_user, on_tiny):
    assert post(as_user("alice"), "/nli", {"pairs": [UPSTREAM_PAIR]}).json()["ok"] is True
    assert post(as_user("eve"), "/nli", {"pairs": []}).status_code == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_open_to_the_loopback(opened, peer):
    assert post(opened, "/nli", {"pairs": []}, REMOTE_ADDR=peer).status_code == 200


@pytest.mark.parametrize("peer", ["10.0.0.5", "::ffff:10.0.0.5", "2001:db8::1", "", "unix:"])
def test_closed_to_everybody_else(opened, peer):
    assert post(opened, "/nli", {"pairs": []}, REMOTE_ADDR=peer).status_code == 401


@pytest.mark.parametrize(
    "header", ["FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_HOST", "X_REAL_IP", "VIA"]
)
def test_closed_behind_a_proxy(opened, header):
    extra = {f"HTTP_{header}": "127.0.0.1"}
    assert post(opened, "/nli", {"pairs": []}, **extra).status_code == 401


def test_a_session_cookie_is_no_key(client, cast, on_tiny):
    client.force_login(cast["ada"])
    assert post(client, "/nli/adapter/unload").status_code == 401


def test_nothing_is_redirected_to_https_that_a_program_without_redirects_asks_for(
    settings, on_tiny, db
):
    settings.SECURE_SSL_REDIRECT = True
    client = Client()  # after the setting: the middleware reads it once
    paths = [f"{start}/{each.pattern}" for start in ("", "/ml") for each in UPSTREAM]
    for path in [*paths, "/livez", "/readyz"]:
        assert client.get(path).status_code in {200, 401, 405, 503}, path
    for path in ("/admin/", "/tokens", "/nli/x", "/api/v1/nli", "/admin/nli"):
        assert client.get(path).status_code == 301, path


def test_a_trailing_slash_is_another_path_and_nothing_redirects(opened):
    assert post(opened, "/nli/", {"pairs": []}).status_code == 404


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "*/*", ""])
def test_always_json(opened, accept):
    response = post(opened, "/nli", {"pairs": []}, HTTP_ACCEPT=accept)
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/nli", "/embed", "/warmup", "/nli/adapter/load"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_no_method_is_an_internal_error(opened, path, method):
    assert opened.generic(method, path).status_code in {200, 405}
