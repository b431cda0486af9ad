"""The schema of the REST API: complete, and true of what clients get, refusals above all."""

import inspect
import io
import json
from collections.abc import Iterator
from unittest import mock

import jsonschema
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator

from adapters_app.api import ReadOnly
from adapters_app.models import TrainingRun
from adapters_app.nli.config import CHOICES, RANGES
from corrections.api import AuditSampleViewSet
from corrections.models import AuditSample
from inference import engine, imports, tallies
from inference.batching import Overloaded
from tests.versions import PAIR, promote

pytest_plugins = ("tests.serving",)

API = "/api/v1"
NEW = {"premise": "a", "hypothesis": "b", "predicted_label": "neutral", "correct_label": "supports"}


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))


def operations(schema) -> Iterator[tuple[str, dict]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def checked(schema, answer, path: str, status: int):
    """The answer's body, if the schema has this status and body for what was asked, and knows all
    that it holds."""
    assert answer.status_code == status, answer.content
    operation = schema["paths"][API + path][answer.request["REQUEST_METHOD"].lower()]
    documented = operation["responses"][str(status)]
    body = answer.json()
    said = documented["content"]["application/json"]["schema"]
    jsonschema.validate(body, exact({"components": schema["components"], **said}))
    return body


def exact(schema):
    """An OpenAPI 3.0 schema as JSON Schema, in which what is not named may not be there."""
    if isinstance(schema, list):
        return [exact(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: exact(each) for name, each in schema.items() if name != "nullable"}
    if "properties" in found and found.get("type") == "object":
        found["additionalProperties"] = False
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True else found


def test_the_schema_is_valid_and_leaves_nothing_to_guess():
    written = io.StringIO()
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=written)
    assert "openapi: 3" in written.getvalue()


def test_no_docstring_is_shown_and_every_post_is_explained(schema):
    docstrings = [inspect.getdoc(view) for view in (ReadOnly, AuditSampleViewSet)]
    for name, operation in operations(schema):
        assert operation["summary"], name
        assert operation.get("description") not in docstrings, name
        assert "description" in operation or name.startswith("get"), name


def bodies(operation) -> Iterator[dict]:
    """What a body may be, of each Content-Type but those of a body that is itself a file."""
    for sent in operation.get("requestBody", {"content": {}})["content"].values():
        assert sent["examples"]
        if sent["schema"].get("type") != "string":
            yield sent


def test_every_body_has_an_example_that_is_no_placeholder(schema):
    for name, operation in operations(schema):
        for sent in bodies(operation):
            reference = sent["schema"]["$ref"].rpartition("/")[2]
            for example in sent["examples"].values():
                jsonschema.validate(
                    example["value"],
                    {"components": schema["components"], **sent["schema"]},
                )
                known = schema["components"]["schemas"][reference]["properties"]
                assert example["value"].keys() <= known.keys(), name


def reachable(schema, part) -> Iterator[dict]:
    """Every object in `part`, and in what it refers to."""
    if isinstance(part, list):
        for each in part:
            yield from reachable(schema, each)
    elif isinstance(part, dict):
        if part.get("type") == "object":
            yield part
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            yield from reachable(schema, schema["components"]["schemas"][name])
        for each in part.values():
            yield from reachable(schema, each)


def test_bodies_hold_nothing_that_is_not_named(schema):
    for name, operation in operations(schema):
        for sent in bodies(operation):
            objects = list(reachable(schema, sent["schema"]))
            assert objects, name
            assert all(each["additionalProperties"] is False for each in objects), name


def test_what_is_limited_says_so(schema, settings):
    known = schema["components"]["schemas"]
    pairs = known["NliRequestRequest"]["properties"]["pairs"]
    assert (pairs["minItems"], pairs["maxItems"]) == (1, settings.LYRA_MAX_PAIRS)
    for name in ("PairRequest", "NewCorrectionRequest"):
        premise = known[name]["properties"]["premise"]
        assert (premise["minLength"], premise["maxLength"]) == (1, settings.LYRA_MAX_CHARS)
    new = known["NewCorrectionRequest"]["properties"]
    confidence = new["predicted_confidence"]
    assert (confidence["minimum"], confidence["maximum"]) == (0, 1)
    assert new["predicted_version"]["minimum"] == 1
    reviews = known["ReviewsRequest"]["properties"]["reviews"]
    assert (reviews["minItems"], reviews["maxItems"]) == (1, 200)
    settings = known["TrainSettingsRequest"]["properties"]
    for name, limits in RANGES.items():
        assert (settings[name]["minimum"], settings[name]["maximum"]) == limits, name
    for name, choices in CHOICES.items():
        assert schema_of(schema, settings[name])["enum"] == list(choices), name
    assert "comparing" not in json.dumps(schema)


def schema_of(schema, part) -> dict:
    """What a property says, where it stands or where it leads."""
    reference = part.get("$ref") or part["allOf"][0]["$ref"]
    return schema["components"]["schemas"][reference.rpartition("/")[2]]


def test_answers_are_what_the_schema_says(schema, as_user, cast, on_tiny, make_version, tmp_path):
    """Of a system in which everything has happened once; and all of what lists and items hold."""
    ada = as_user("ada")
    promote(make_version(), cast["rita"])
    make_version(verdict="inconclusive")
    sent = NEW | {"predicted_confidence": 0.5}
    checked(schema, ada.post(f"{API}/nli", {"pairs": [PAIR]}), "/nli", 200)
    row = checked(schema, ada.post(f"{API}/corrections", sent), "/corrections", 201)["id"]
    path = "/corrections/{id}/review"
    reviewed = ada.post(f"{API}/corrections/{row}/review", {"status": "accepted"})
    checked(schema, reviewed, path, 200)
    path, many = "/corrections/review", [{"id": row, "status": "pending"}]
    checked(schema, ada.post(API + path, {"reviews": many}), path, 200)
    refused = [*many, {"id": row + 1, "status": "accepted"}]
    checked(schema, ada.post(API + path, {"reviews": refused}), path, 409)
    waiting, answered, skipped = (draw() for _ in range(3))
    for sample, act, body in (
        (answered, "answer", {"correct_label": "refutes"}),
        (skipped, "skip", {"reason": "Half a sentence."}),
    ):
        told = ada.post(f"{API}/audit-samples/{sample.pk}/{act}", body)
        checked(schema, told, f"/audit-samples/{{id}}/{act}", 200)
    for state in ("waiting", "answered", "skipped"):
        listed = ada.get(f"{API}/audit-samples?state={state}")
        assert checked(schema, listed, "/audit-samples", 200)["count"] == 1
    told = checked(schema, ada.get(f"{API}/audit-samples/{waiting.pk}"), "/audit-samples/{id}", 200)
    assert told["decided_by"] is None
    tallies.flush()
    stats = checked(schema, ada.get(f"{API}/stats"), "/stats", 200)
    assert stats["live"]["by_version"][0]["accuracy"]
    assert stats["predictions"]
    checked(schema, ada.get(f"{API}/adapters/serving"), "/adapters/serving", 200)
    for name, item in (
        ("corrections", "{id}"),
        ("adapters", "{version}"),
        ("training-runs", "{id}"),
        ("shadow-evaluations", "{id}"),
        ("calibrations", "{id}"),
        ("promotions", "{id}"),
    ):
        listed = checked(schema, ada.get(f"{API}/{name}?page_size=1"), f"/{name}", 200)
        for row in listed["results"]:
            key = row["name"] if name == "adapters" else row["id"]
            checked(schema, ada.get(f"{API}/{name}/{key}"), f"/{name}/{item}", 200)


def draw() -> AuditSample:
    return AuditSample.objects.create(
        premise="No fall was seen.",
        hypothesis="People fell.",
        predicted_label="refutes",
        raw_confidence=0.9,
        confidence=0.8,
        predicted_digest="d" * 64,
        probability=0.5,
        drawn_at=timezone.now(),
    )


def test_every_list_says_how_it_is_narrowed_and_refuses_the_rest(schema, as_user, on_tiny):
    ada, lists = as_user("ada"), 0
    for name, operation in operations(schema):
        path = name.removeprefix("get ")
        answer = operation["responses"].get("200", {}).get("content", {}).get("application/json")
        if not answer or "Paginated" not in answer["schema"].get("$ref", ""):
            continue
        lists += 1
        known = {each["name"]: each["schema"] for each in operation["parameters"]}
        assert {"cursor", "page_size"} <= known.keys()
        assert known["page_size"]["maximum"] == 200
        checked(schema, ada.get(f"{path}?nonsense=1"), path.removeprefix(API), 400)
        for parameter in known:
            assert ada.get(f"{path}?{parameter}=").status_code == 400, parameter
            assert "Unknown" not in str(ada.get(f"{path}?{parameter}=").json())
    assert lists == 7


def test_a_version_is_a_number_in_every_answer(schema):
    versions = {"version", "previous_version", "candidate", "incumbent", "produced"}
    versions |= {"predicted_version", "compared_with"}
    found = {
        (component, name): part["type"]
        for component, said in schema["components"]["schemas"].items()
        for name, part in said.get("properties", {}).items()
        if name in versions and not component.endswith("Request")
    }
    assert {name for _, name in found} == versions
    assert set(found.values()) == {"integer"}, found


def test_an_edit_requires_the_revision_that_was_seen(schema):
    edit = schema["paths"][f"{API}/corrections/{{id}}"]["patch"]["requestBody"]
    reference = edit["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert schema["components"]["schemas"][reference]["required"] == ["revision"]
    assert edit["required"]


def test_no_refusal_says_string(schema):
    for name, operation in operations(schema):
        for status, answer in operation["responses"].items():
            if status >= "400":
                assert '"string"' not in json.dumps(example_of(answer, schema)), (name, status)


def example_of(answer, schema):
    content = answer["content"]["application/json"]
    if "oneOf" in content["schema"]:
        return schema["components"]["schemas"]["FieldErrors"]["example"]
    example = content.get("example") or next(iter(content["examples"].values()))["value"]
    jsonschema.validate(example, {"components": schema["components"], **content["schema"]})
    return example


def test_the_introduction_says_how_to_sign_in(schema):
    said = schema["info"]["description"]
    for words in ("Authorization: Token", "(/tokens)", "manage.py tokens issue", "curl"):
        assert words in said


def test_every_operation_says_how_it_refuses(schema):
    for name, operation in operations(schema):
        answers = operation["responses"]
        assert {"401", "403", "503"} <= answers.keys(), name
        assert "Retry-After" in answers["503"]["headers"], name
        assert ("404" in answers) >= ("{" in name), name
        assert ({"400", "413", "415"} <= answers.keys()) >= ("requestBody" in operation), name
    promote = schema["paths"][f"{API}/adapters/{{version}}/promote"]["post"]["responses"]
    assert promote["403"]["description"].endswith(": releaser, administrator.")
    listed = schema["paths"][f"{API}/corrections"]["get"]["responses"]
    assert listed["403"]["description"].endswith(": caller, curator, administrator.")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/nli", {"pairs": [PAIR]}), ("/adapters/rollback", {"reason": "x"}), ("/corrections", NEW)],
)
def test_who_is_nobody_and_who_may_not(schema, as_user, client, path, body):
    answer = client.post(API + path, body, content_type="application/json")
    checked(schema, answer, path, 401)
    assert answer["WWW-Authenticate"] == "Token"
    checked(schema, as_user("eve").post(API + path, body), path, 403)


def test_bodies_that_are_wrong(schema, as_user, on_tiny, settings):
    alice = as_user("alice")
    path = "/nli"
    body = checked(schema, alice.post(API + path, {"pairs": [{"premise": "a"}]}), path, 400)
    assert body == {"pairs": {"0": {"hypothesis": ["This field is required."]}}}
    checked(schema, alice.post(API + path, {"pairs": [PAIR], "adapter": "v9"}), path, 400)
    checked(schema, alice.post(API + path, [1]), path, 400)
    checked(schema, alice.post(API + "/corrections", NEW), "/corrections", 400)
    broken = alice.post(API + path, b"{", content_type="application/json")
    assert "JSON parse error" in checked(schema, broken, path, 400)["detail"]
    form = alice.post(API + path, b"pairs=1", content_type="application/x-www-form-urlencoded")
    checked(schema, form, path, 415)
    settings.LYRA_MAX_BODY_BYTES = 10
    checked(schema, alice.post(API + path, {"pairs": [PAIR]}), path, 413)


def test_files_that_are_imported_or_not(schema, as_user, settings):
    bob, path = as_user("bob"), "/corrections/import"

    def send(content: bytes, query: str = "", kind: str = "application/x-ndjson"):
        return bob.generic("POST", f"{API}{path}{query}", content, kind)

    good = json.dumps(NEW | {"predicted_confidence": 0.5}).encode()
    report = checked(schema, send(good), path, 200)
    assert (report["created"], report["refused"]) == (1, [])
    report = checked(schema, send(good + b"\n{"), path, 409)
    assert (report["rows"], len(report["refused"])) == (2, 1)
    checked(schema, send(b"\n"), path, 400)
    checked(schema, send(good, "?dry=1"), path, 400)
    checked(schema, send(good, kind="application/json"), path, 415)
    checked(schema, as_user("alice").post(API + path), path, 403)
    with imports._turn():
        assert int(send(good)["Retry-After"]) > 0
        checked(schema, send(good), path, 503)
    settings.LYRA_MAX_IMPORT_BYTES = 10
    checked(schema, send(good), path, 413)


def test_the_largest_body_is_said_of_each_path(schema, settings):
    for path, limit in (
        ("/corrections/import", settings.LYRA_MAX_IMPORT_BYTES),
        ("/corrections", settings.LYRA_MAX_BODY_BYTES),
    ):
        refusal = schema["paths"][API + path]["post"]["responses"]["413"]
        said = refusal["content"]["application/json"]["example"]["detail"]
        assert said.endswith(f"; at most {limit} are accepted."), path


def test_what_is_not_there_and_filters_that_are_wrong(schema, as_user):
    tom = as_user("tom")
    checked(schema, tom.get(f"{API}/adapters/v9"), "/adapters/{version}", 404)
    checked(schema, tom.get(f"{API}/training-runs/9"), "/training-runs/{id}", 404)
    checked(schema, tom.get(f"{API}/training-runs?page=9"), "/training-runs", 400)
    checked(schema, tom.get(f"{API}/training-runs?status=x"), "/training-runs", 400)


def test_what_is_refused_with_409(schema, as_user, cast, make_version):
    tom, rita, version = as_user("tom"), as_user("rita"), make_version(verdict="inconclusive")
    checked(schema, tom.post(f"{API}/training-runs", {}), "/training-runs", 409)
    over = TrainingRun.objects.create(status="cancelled", requested_by=cast["tom"])
    path = "/training-runs/{id}/cancel"
    checked(schema, tom.post(f"{API}/training-runs/{over.pk}/cancel"), path, 409)
    decided = {"reason": "better", "expected_revision": 0}
    path = "/adapters/{version}/promote"
    for body in (decided, decided | {"expected_revision": 5}):
        checked(schema, rita.post(f"{API}/adapters/{version}/promote", body), path, 409)
    checked(schema, rita.post(f"{API}/adapters/rollback", decided), "/adapters/rollback", 409)


def test_predictions_that_come_at_a_bad_time(schema, as_user, on_tiny, monkeypatch):
    monkeypatch.setattr(engine, "answer", mock.Mock(side_effect=Overloaded("Too many wait.")))
    answer = as_user("alice").post(f"{API}/nli", {"pairs": [PAIR]})
    checked(schema, answer, "/nli", 503)
    assert int(answer["Retry-After"]) > 0


def test_a_lost_database_and_lost_files(schema, as_user, make_version, on_tiny):
    rita, version = as_user("rita"), make_version()
    for file in on_tiny.rglob("store/**/*.safetensors"):
        file.unlink()
    answer = rita.get(f"{API}/adapters/{version}/download")
    checked(schema, answer, "/adapters/{version}/download", 503)
    token = {"Authorization": "Token " + "a" * 64}
    with mock.patch.object(connection, "cursor", side_effect=OperationalError("gone")):
        answer = Client(headers=token).get(f"{API}/stats")
    checked(schema, answer, "/stats", 503)
    assert int(answer["Retry-After"]) > 0


def test_the_page_of_the_api_leads_home_and_follows_the_choice_of_dark(client, cast):
    client.force_login(cast["alice"])
    page = client.get(f"{API}/docs").content.decode()
    assert '<a href="/admin/">Lyra</a>' in page
    assert "dark-mode" in page
