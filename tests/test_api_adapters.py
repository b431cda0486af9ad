"""/api/v1: training runs, adapters, what serves, evaluations, calibrations, the ledger, stats."""

import errno
import io
import zipfile

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from adapters_app import registry, storage, training
from adapters_app.models import Promotion, TrainingRun
from tests.versions import compare, promote

pytest_plugins = ("tests.serving", "tests.s3")

API = "/api/v1"
LISTS = ("adapters", "shadow-evaluations", "promotions", "calibrations", "training-runs")


@pytest.fixture
def rita(make_version, as_user):
    return as_user("rita")


@pytest.fixture
def tom(on_tiny, as_user):
    return as_user("tom")


def decide(client, path, **body):
    return client.post(
        f"{API}/adapters/{path}", {"reason": "measured better"} | body, format="json"
    )


# --- adapters -------------------------------------------------------------------------------------


def test_versions_are_listed_newest_first_and_inspected_by_name_or_number(rita, make_version):
    first, second = make_version(), make_version()
    listed = rita.get(f"{API}/adapters").json()
    assert listed["count"] == 2
    assert [row["name"] for row in listed["results"]] == ["v2", "v1"]
    for name in ("v1", "1"):
        shown = rita.get(f"{API}/adapters/{name}").json()
        assert shown["artifact_digest"] == first.artifact_digest
        assert shown["created_by"] == "tom"
    assert second.artifact_digest != first.artifact_digest


@pytest.mark.parametrize(
    "name", ["v99", "999999999", "9999999999999999999999", "x", "%00", "..%2f"]
)
def test_an_unknown_version_is_404(rita, name):
    response = rita.get(f"{API}/adapters/{name}")
    assert response.status_code == 404
    assert response.json()["detail"]


def test_promote_and_roll_back(rita, make_version):
    make_version()
    promoted = decide(rita, "v1/promote", expected_revision=0)
    assert promoted.status_code == 200
    assert promoted.json() | {"action": "promote", "version": 1, "by": "rita"} == promoted.json()
    serving = rita.get(f"{API}/adapters/serving").json()
    assert (serving["version"], serving["revision"]) == (1, 1)
    assert serving["calibration"] == "v1/c1 (temperature)"
    assert decide(rita, "rollback", expected_revision=1).json()["version"] is None
    assert rita.get(f"{API}/adapters/serving").json()["revision"] == 2
    assert rita.get(f"{API}/promotions").json()["count"] == 2


def test_roll_back_to_a_named_version(rita, make_version, cast):
    first = make_version()
    promote(first, cast["rita"])
    promote(make_version(against=first), cast["rita"])
    assert decide(rita, "rollback", to="v1").json()["version"] == 1
    assert decide(rita, "rollback", to="base").json()["version"] is None
    assert decide(rita, "rollback", to=2).json()["version"] == 2
    assert decide(rita, "rollback", to="v77").status_code == 400


def test_a_stale_decision_is_409_and_says_who_was_faster(rita, make_version, cast):
    first = make_version()
    promote(first, cast["rita"])
    make_version(against=first)
    response = decide(rita, "v2/promote", expected_revision=0)
    assert response.status_code == 409
    assert "rita promoted v1" in response.json()["detail"]
    assert Promotion.objects.count() == 1


def test_the_gate_decides_behind_this_door_too(rita, make_version):
    make_version(verdict="inconclusive")
    make_version(verdict="worse")
    assert decide(rita, "v1/promote", expected_revision=0).status_code == 409
    assert decide(rita, "v2/promote", expected_revision=0).status_code == 409
    accepted = decide(rita, "v1/promote", expected_revision=0, acknowledge=True)
    assert accepted.json()["acknowledged"] is True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reason": "", "expected_revision": 0}, "reason"),
        ({"reason": "x"}, "expected_revision"),
        ({"reason": "x", "expected_revision": -1}, "expected_revision"),
        ({"reason": "x", "expected_revision": 2**63 - 1}, "expected_revision"),
        ({"reason": "x", "expected_revision": "soon"}, "expected_revision"),
        ({"reason": "a\0", "expected_revision": 0}, "reason"),
        ({"reason": "x" * 2_001, "expected_revision": 0}, "reason"),
        ({"reason": "x", "expected_revision": 0, "override": "perhaps"}, "override"),
    ],
)
def test_promote_names_the_wrong_field(rita, make_version, body, field):
    make_version()
    response = rita.post(f"{API}/adapters/v1/promote", body, format="json")
    assert response.status_code == 400
    assert list(response.json()) == [field]


@pytest.mark.parametrize("accept", ["*/*", "text/markdown", "application/zip", "application/json"])
def test_model_card_and_download(rita, make_version, accept):
    make_version()
    card = rita.get(f"{API}/adapters/v1/card", HTTP_ACCEPT=accept)
    assert card["Content-Type"].startswith("text/markdown")
    assert card.content.startswith(b"# Adapter 1")
    response = rita.get(f"{API}/adapters/v1/download", HTTP_ACCEPT=accept)
    assert 'filename="v1.zip"' in response["Content-Disposition"]
    archive = zipfile.ZipFile(io.BytesIO(b"".join(response.streaming_content)))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_a_download_whose_files_are_gone_is_503_and_named(rita, make_version, on_tiny):
    make_version()
    for path in [*on_tiny.rglob("store/**/*.json"), *on_tiny.rglob("cache/**/*.json")]:
        path.unlink()
    response = rita.get(f"{API}/adapters/v1/download")
    assert response.status_code == 503
    assert "v1" in response.json()["detail"]


@pytest.mark.parametrize("what", ["card", "download"])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("denied")], ids=repr
)
def test_a_store_that_cannot_be_read_is_503_and_named(rita, make_version, monkeypatch, what, fault):
    make_version()

    def fail(_):
        raise fault

    monkeypatch.setattr(storage, "fetch", fail)
    response = rita.get(f"{API}/adapters/v1/{what}")
    assert response.status_code == 503
    assert response.json()["detail"].startswith("v1: ")
    assert (fault.strerror or str(fault)) in response.json()["detail"]


def test_a_store_that_is_away_is_told_at_every_door(rita, make_version, s3):
    make_version()
    s3.go_away()
    refused = decide(rita, "v1/promote", expected_revision=0)
    assert refused.status_code == 409
    assert "The artifact store cannot be used" in refused.json()["detail"]
    for what in ("card", "download"):
        response = rita.get(f"{API}/adapters/v1/{what}")
        assert response.status_code == 503
        assert response.json()["detail"].startswith("v1: ")


@pytest.mark.parametrize("what", ["card", "download"])
def test_a_copy_that_vanishes_while_it_is_read_is_503_and_named(
    rita, make_version, monkeypatch, tmp_path, what
):
    make_version()
    monkeypatch.setattr(storage, "fetch", lambda _: tmp_path / "pruned")
    response = rita.get(f"{API}/adapters/v1/{what}")
    assert response.status_code == 503
    detail = response.json()["detail"]
    assert detail.startswith("v1: ")
    assert str(tmp_path) not in detail


# --- training runs --------------------------------------------------------------------------------


def test_a_request_below_the_floor_is_409_with_the_reason(tom):
    response = tom.post(f"{API}/training-runs", {"reason": "new domain"}, format="json")
    assert response.status_code == 409
    assert "at least 60 are needed" in response.json()["detail"]
    assert not TrainingRun.objects.exists()


def test_a_shadow_evaluation_is_requested_followed_and_cancelled(tom, make_version):
    make_version()
    body = {"kind": "shadow", "version": "v1", "reason": "measure again"}
    requested = tom.post(f"{API}/training-runs", body, format="json")
    assert requested.status_code == 201
    run = requested.json()
    assert (run["status"], run["version"], run["requested_by"]) == ("queued", 1, "tom")
    assert "fencing_token" not in run
    url = f"{API}/training-runs/{run['id']}"
    assert tom.get(url).json() == run
    cancelled = tom.post(f"{url}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    again = tom.post(f"{url}/cancel")
    assert (again.status_code, "already over" in again.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("against", "told"),
    [("v1", "v1"), ("1", "v1"), (1, "v1"), ("base", "base"), (None, None), ("absent", None)],
)
def test_a_shadow_evaluation_names_what_it_compares_with(tom, make_version, against, told):
    make_version(), make_version()
    body = {"kind": "shadow", "version": "v2", "against": against}
    if against == "absent":
        del body["against"]
    requested = tom.post(f"{API}/training-runs", body, format="json")
    assert requested.status_code == 201
    assert requested.json()["against"] == told
    (listed,) = tom.get(f"{API}/training-runs?kind=shadow").json()["results"]
    assert (listed["version"], listed["against"]) == (2, told)


def test_a_version_is_not_compared_with_itself(tom, make_version):
    make_version()
    body = {"kind": "shadow", "version": "v1", "against": "v1"}
    response = tom.post(f"{API}/training-runs", body, format="json")
    assert response.status_code == 409
    assert "not compared with itself" in response.json()["detail"]
    assert not TrainingRun.objects.filter(kind="shadow").exists()


def test_comparisons_of_two_versions_are_found_and_are_no_evidence(rita, make_version):
    first, second = make_version(), make_version()
    compared = compare(second, first)
    find = f"{API}/shadow-evaluations"
    (row,) = rita.get(f"{find}?version=v2&against=v1").json()["results"]
    assert (row["id"], row["incumbent"], row["incumbent_served"]) == (compared.pk, 1, False)
    (row,) = rita.get(f"{find}?version=2&against=base").json()["results"]
    assert (row["incumbent"], row["incumbent_served"]) == (None, True)
    assert rita.get(f"{find}?against=base").json()["count"] == 2
    assert rita.get(f"{find}?against=x").status_code == 400
    response = decide(rita, "v2/promote", expected_revision=0, evidence=compared.pk)
    assert response.status_code == 409
    assert "no evidence for a promotion" in response.json()["detail"]


def test_a_request_that_is_sent_again_is_409_and_names_the_run(tom, make_version):
    make_version()
    body = {"kind": "shadow", "version": 1}
    run = tom.post(f"{API}/training-runs", body, format="json").json()["id"]
    again = tom.post(f"{API}/training-runs", body, format="json")
    assert (again.status_code, f"Run {run} is queued" in again.json()["detail"]) == (409, True)
    assert TrainingRun.objects.active().count() == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "nonsense"}, "kind"),
        ({"kind": "shadow"}, "version"),
        ({"kind": "shadow", "version": "v9"}, "version"),
        ({"version": "v1"}, "version"),
        ({"against": "v1"}, "against"),
        ({"against": "base"}, "against"),
        ({"kind": "shadow", "against": "base"}, "version"),
        ({"scope": 5}, "scope"),
        ({"domain": "x" * 101}, "domain"),
        ({"config": []}, "config"),
        ({"config": {"target_modules": "a\0b"}}, "config"),
    ],
)
def test_a_wrong_request_names_the_field(tom, body, field):
    response = tom.post(f"{API}/training-runs", body, format="json")
    assert response.status_code == 400
    assert list(response.json()) == [field]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonsense", 1),
        ("epoch", 2),
        ("rank", 0),
        ("rank", "8"),
        ("rank", 2.0),
        ("rank", True),
        ("rank", [1]),
        ("dropout", "0.1"),
        ("dropout", 0.91),
        ("learning_rate", 0),
        ("corrections_only", 1),
        ("corrections_only", "yes"),
        ("preset", "x" * 10_000),
        ("precision", "fp7"),
        ("target_modules", []),
        ("x" * 10_000, 1),
    ],
)
def test_an_impossible_setting_is_400_and_named(tom, name, value):
    response = tom.post(f"{API}/training-runs", {"config": {name: value}}, format="json")
    assert response.status_code == 400
    assert list(response.json()["config"]) == [name[:60]]
    assert len(response.content) < 300


@pytest.mark.parametrize("against", ["v9", "the base", "", [], True, 1.0, "v1\0", "1" * 33, {}])
def test_what_cannot_be_compared_with_is_400_and_named(tom, make_version, against):
    make_version()
    body = {"kind": "shadow", "version": "v1", "against": against}
    response = tom.post(f"{API}/training-runs", body, format="json")
    assert (response.status_code, list(response.json())) == (400, ["against"])
    assert not TrainingRun.objects.filter(kind="shadow").exists()


def test_a_shadow_evaluation_takes_no_settings(tom, make_version):
    make_version()
    body = {"kind": "shadow", "version": "v1", "config": {"epochs": 2}}
    response = tom.post(f"{API}/training-runs", body, format="json")
    assert (response.status_code, list(response.json())) == (400, ["config"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("training-runs", {"kinds": "shadow", "version": "v1"}, "kinds"),
        ("training-runs", {"domain": 5}, "domain"),
        ("training-runs", {"kind": "x" * 10_000}, "kind"),
        ("adapters/v1/promote", {"expected_revision": "0"}, "expected_revision"),
        ("adapters/v1/promote", {"expected_revision": 0.0}, "expected_revision"),
        ("adapters/v1/promote", {"evidence": "1"}, "evidence"),
        ("adapters/v1/promote", {"override": "on"}, "override"),
        ("adapters/v1/promote", {"acknowledge": 1}, "acknowledge"),
        ("adapters/v1/promote", {"reason": 5}, "reason"),
        ("adapters/v1/promote", {"overide": True}, "overide"),
        ("adapters/rollback", {"expected_revison": 5}, "expected_revison"),
        ("adapters/rollback", {"expected_revision": "0.0"}, "expected_revision"),
        ("adapters/rollback", {"to": 1.0}, "to"),
        ("adapters/rollback", {"to": True}, "to"),
    ],
)
def test_what_is_misspelt_or_of_another_type_changes_nothing(
    as_user, make_version, cast, path, body, field
):
    promote(make_version(), cast["rita"])
    make_version()
    decision = {} if path == "training-runs" else {"reason": "better"}
    if path.endswith("promote"):
        decision["expected_revision"] = 1
    response = as_user("ada").post(f"{API}/{path}", decision | body, format="json")
    assert (response.status_code, field in response.json()) == (400, True)
    assert len(response.content) < 300
    assert registry.serving().revision == 1
    assert not TrainingRun.objects.filter(status="queued").exists()


def test_an_unknown_field_is_told_with_the_known_one_that_is_meant(rita):
    response = rita.post(f"{API}/adapters/rollback", {"expected_revison": 5}, format="json")
    assert response.json() == {
        "reason": ["This field is required."],
        "expected_revison": ["Unknown field. Did you mean “expected_revision”?"],
    }


def test_runs_are_filtered(tom, make_version, cast):
    version = make_version()
    training.request(by=cast["tom"], kind="shadow", version=version)
    assert tom.get(f"{API}/training-runs?status=queued").json()["count"] == 1
    assert tom.get(f"{API}/training-runs?status=succeeded&kind=train").json()["count"] == 1
    assert tom.get(f"{API}/training-runs?status=%00").status_code == 400


# --- what lists leave out -------------------------------------------------------------------------


def test_the_verdicts_in_doubt_are_on_a_versions_own_page_and_not_in_the_list(rita, make_version):
    doubted = [{"correction_id": number, "given": "neutral"} for number in range(50)]
    make_version(metrics={"suspicious": doubted, "chosen_epoch": 2})
    (listed,) = rita.get(f"{API}/adapters").json()["results"]
    shown = rita.get(f"{API}/adapters/v1").json()
    assert shown["metrics"] == {"suspicious": doubted, "chosen_epoch": 2}
    assert listed == {name: value for name, value in shown.items() if name != "metrics"}


def test_the_schema_says_what_lists_leave_out(rita):
    schema = rita.get(f"{API}/schema?format=json").json()

    def fields(path, *, listed):
        content = schema["paths"][path]["get"]["responses"]["200"]["content"]
        found = resolved(content["application/json"]["schema"])
        return set(resolved(found["results"]["items"]) if listed else found)

    def resolved(reference):
        name = reference["$ref"].rpartition("/")[2]
        return schema["components"]["schemas"][name]["properties"]

    for name, item, left_out in (
        ("adapters", "{version}", {"metrics"}),
        ("shadow-evaluations", "{id}", {"flips"}),
        ("training-runs", "{id}", {"loss_curve", "log_tail"}),
    ):
        whole = fields(f"/api/v1/{name}/{item}", listed=False)
        assert whole - fields(f"/api/v1/{name}", listed=True) == left_out


@pytest.mark.parametrize("path", LISTS)
def test_a_list_reads_as_often_for_many_rows_as_for_one_and_nothing_long(
    rita, make_version, cast, path
):
    def asked():
        with CaptureQueriesContext(connection) as found:
            assert rita.get(f"{API}/{path}").json()["count"]
        return [query["sql"] for query in found]

    previous = make_version()
    promote(previous, cast["rita"])
    once = asked()
    for _ in range(3):
        previous = make_version(against=previous)
        promote(previous, cast["rita"])
    often = asked()
    assert len(often) == len(once)
    for column in ("flips", "metrics", "loss_curve", "log_tail"):
        assert not [sql for sql in often if f'"{column}"' in sql], column


# --- evaluations, calibrations, ledger, stats -----------------------------------------------------


def test_evaluations_and_calibrations_of_a_version(rita, make_version):
    first = make_version()
    surer = {"against_incumbent": {"accuracy": {"confidence": 0.975}}, "attempt": 2}
    make_version(against=first).evaluations.update(figures=surer)
    assert rita.get(f"{API}/shadow-evaluations").json()["count"] == 2
    (row,) = rita.get(f"{API}/shadow-evaluations?version=v2").json()["results"]
    assert (row["candidate"], row["incumbent"], row["verdict"]) == (2, 1, "better")
    assert "flips" not in row
    assert row["figures"] == surer
    told = rita.get(f"{API}/schema?format=json").json()["components"]["schemas"]["ShadowSummary"]
    assert "of `accuracy.confidence`" in told["properties"]["figures"]["description"]
    assert rita.get(f"{API}/shadow-evaluations/{row['id']}").json()["flips"] == []
    (row,) = rita.get(f"{API}/calibrations?version=1").json()["results"]
    assert (row["name"], row["parameters"]) == ("v1/c1 (temperature)", {"temperature": 2.0})
    assert rita.get(f"{API}/calibrations?version=base").json()["count"] == 0
    assert rita.get(f"{API}/calibrations?version=x").status_code == 400


def test_stats(rita, make_version):
    make_version()
    stats = rita.get(f"{API}/stats").json()
    assert stats["serving"]["version"] is None
    assert stats["adapter_versions"] == 1
    assert stats["training_runs"] == {"succeeded": 1}
    assert stats["training_triggers"]["should_train"] is False
    assert all(row["sentence"] for row in stats["training_triggers"]["conditions"])


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("page_size=0", "page_size"),
        ("page_size=-1", "page_size"),
        ("page_size=201", "page_size"),
        ("page_size=abc", "page_size"),
        ("page_size=", "page_size"),
        ("page_size=²", "page_size"),
        ("page_size=" + "9" * 5_000, "page_size"),
        ("cursor=", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=WzFd", "cursor"),
        ("page=2", "page"),
        ("stauts=queued", "stauts"),
        ("candidate=v9", "candidate"),
        ("x" * 1_000, "x" * 60),
    ],
)
def test_a_list_refuses_what_it_does_not_know(rita, path, query, name):
    response = rita.get(f"{API}/{path}?{query}")
    assert (response.status_code, list(response.json())) == (400, [name])
    if name == "page_size":
        assert "from 1 to 200" in response.json()[name][0]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("training-runs?version=v1", "version"),
        ("promotions?version=v1", "version"),
        ("training-runs?status=", "status"),
        ("training-runs?status=queued&status=failed", "status"),
        ("calibrations?version=", "version"),
    ],
)
def test_a_filter_that_would_return_everything_is_refused(rita, query, name):
    response = rita.get(f"{API}/{query}")
    assert (response.status_code, list(response.json())) == (400, [name])


def test_a_list_is_walked_page_by_page(rita, make_version):
    previous = None
    for _ in range(5):
        previous = make_version(against=previous)
    found, address = [], f"{API}/adapters?page_size=2"
    while address:
        page = rita.get(address).json()
        assert page["count"] == 5
        found += [row["name"] for row in page["results"]]
        address = page["next"]
    assert found == ["v5", "v4", "v3", "v2", "v1"]
    assert rita.get(f"{API}/adapters?page_size=5").json()["next"] is None


def test_a_cursor_of_another_list_is_refused(rita, make_version):
    make_version(against=make_version())
    following = rita.get(f"{API}/adapters?page_size=1").json()["next"]
    assert rita.get(following).status_code == 200
    assert rita.get(following.replace("adapters", "calibrations")).status_code == 400


def test_the_schema_names_every_endpoint_and_its_ui_needs_no_network(rita, client, cast):
    schema = rita.get(f"{API}/schema?format=json").json()
    for path in ("nli", "corrections", "training-runs", "adapters", "stats", "calibrations"):
        assert f"/api/v1/{path}" in schema["paths"]
    assert client.get(f"{API}/docs").status_code == 302
    client.force_login(cast["rita"])
    page = client.get(f"{API}/docs")
    assert page.status_code == 200
    assert b"//cdn" not in page.content
    assert b"drf_spectacular_sidecar/swagger-ui" in page.content
