"""Fixtures of the serving tests: a tiny base, real registered versions of it, and the cast.

Alice calls, Bob curates, Tom trains, Rita releases, Ada administers; Eve has no role.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from knox.models import AuthToken
from rest_framework.test import APIClient

from adapters_app import storage
from adapters_app.models import AdapterVersion
from adapters_app.nli.base_model import Base, load_base
from inference import engine
from tests.tiny import tiny_base
from tests.versions import register, write_adapter

ROLES = {"alice": "caller", "bob": "curator", "tom": "trainer", "rita": "releaser", "eve": ""}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="session")
def tiny_model(tiny: str) -> Base:
    return load_base(tiny)


@pytest.fixture
def on_tiny(settings, tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server of its own: the tiny base, an empty artifact store, nothing loaded."""
    settings.LYRA_BASE_MODEL = tiny
    settings.LYRA_ARTIFACT_CACHE = tmp_path / "cache"
    settings.LYRA_REFERENCES = tmp_path / "references"
    settings.STORAGES = settings.STORAGES | {
        "artifacts": settings.STORAGES["artifacts"]
        | {"OPTIONS": {"location": str(tmp_path / "store")}}
    }
    monkeypatch.setattr(engine, "_models", engine._Models())
    return tmp_path


@pytest.fixture
def cast(db) -> dict[str, User]:
    """Every member of the cast, by name."""
    people = {"ada": User.objects.create_superuser("ada", password="ada")}
    for name, role in ROLES.items():
        people[name] = User.objects.create_user(name, password=name)
        if role:
            people[name].groups.add(Group.objects.get(name=role))
    return people


@pytest.fixture
def as_user(cast: dict[str, User]) -> Callable[[str], APIClient]:
    """A client that carries the token of a member of the cast."""

    def client(name: str) -> APIClient:
        _, text = AuthToken.objects.create(cast[name])
        return APIClient(HTTP_AUTHORIZATION=f"Token {text}")

    return client


@pytest.fixture
def make_version(on_tiny: Path, cast, tiny_model: Base) -> Callable[..., AdapterVersion]:
    """Registers a version: random tensors, stored artifact, calibrator, evidence that it is better.

    `against` is the incumbent of that evidence (None = the base).
    """

    def make(*, against: AdapterVersion | None = None, **fields) -> AdapterVersion:
        number = AdapterVersion.objects.count() + 1
        digest = storage.put(on_tiny / write_adapter(on_tiny, tiny_model, seed=number))
        return register(cast["tom"], number, digest, tiny_model, against=against, **fields)

    return make
