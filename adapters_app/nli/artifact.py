"""An adapter on disk: safetensors + JSON, in PEFT's own layout, verified exactly before any use.

No torch: whoever serves without it reads adapters too.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adapters_app.nli.checkpoint import PREFIX

TENSORS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
CARD = "README.md"
FILES = (TENSORS, PEFT_CONFIG, MANIFEST, CARD)
FORMAT = 1


class ArtifactCorrupt(ValueError):
    """The files are not the adapter they claim to be; the message says what differs."""


class Adaptable(Protocol):
    """What must be known of a base to tell whether an adapter is one of its own."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def linear_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Linear module outside the head → (outputs, inputs)."""

    @property
    def head_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter of the head → its shape."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """An adapter: tensors by PEFT's names, and what is needed to fold them. Never written to."""

    tensors: dict[str, np.ndarray]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    head: str
    base_fingerprint: str
    layers: tuple[int, ...] = ()  # numbers of the adapted ones; empty = all
    manifest: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


def write(
    directory: Path, artifact: Artifact, manifest: Mapping[str, Any], card: str, *, base_name: str
) -> str:
    """Write an adapter under `directory`/<digest> and return the digest of its tensor file.

    Written beside, fsynced, renamed: a reader sees the whole artifact or none. Same tensors, same
    digest; an existing directory is left as it is.
    """
    # safetensors writes the memory as it lies, and an array may lie column by column.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in artifact.tensors.items()}
    content = save(tensors, metadata={"format": "pt"})
    digest = hashlib.sha256(content).hexdigest()
    target = directory / digest
    if target.exists():
        return digest
    described = {
        **manifest,
        "format": FORMAT,
        "tensor_sha256": digest,
        "base_fingerprint": artifact.base_fingerprint,
        "rank": artifact.rank,
        "alpha": artifact.alpha,
        "target_modules": list(artifact.target_modules),
        "head": artifact.head,
        "layers": list(artifact.layers),
    }
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory, prefix=".writing-"))
    _write_synced(beside / TENSORS, content)
    _write_synced(beside / PEFT_CONFIG, _json(_peft_config(artifact, base_name)))
    _write_synced(beside / MANIFEST, _json(described))
    _write_synced(beside / CARD, card.encode())
    beside.chmod(0o750)
    try:
        beside.rename(target)
    except OSError:
        if not target.exists():
            raise
        _remove(beside)  # somebody wrote the same artifact meanwhile
    _sync_directory(directory)
    return digest


def read(directory: Path, *, base: Adaptable | None = None, digest: str = "") -> Artifact:
    """Read and verify the adapter in `directory`.

    With `base`, also that it was made for it: fingerprint, exact names, shapes and dtypes.

    Raises:
        ArtifactCorrupt: a file is missing, altered, or does not fit the base.
    """
    try:
        content = (directory / TENSORS).read_bytes()
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(f"{directory.name}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.get("tensor_sha256") or (digest and found != digest):
        raise ArtifactCorrupt(f"{directory.name}: the tensor file's SHA-256 is {found}")
    try:
        artifact = Artifact(
            tensors=load(content),
            rank=int(manifest["rank"]),
            alpha=float(manifest["alpha"]),
            target_modules=tuple(manifest["target_modules"]),
            head=str(manifest["head"]),
            base_fingerprint=str(manifest["base_fingerprint"]),
            layers=tuple(manifest.get("layers", ())),  # older artifacts adapt all
            manifest=manifest,
            digest=found,
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"{directory.name}: {error!r}") from error
    for name, tensor in artifact.tensors.items():
        if not np.isfinite(tensor).all():
            raise ArtifactCorrupt(f"{directory.name}: {name} holds NaN or infinity")
    if base is not None:
        verify_for(artifact, base)
    return artifact


def verify_for(artifact: Artifact, base: Adaptable) -> None:
    """Check that an adapter was made for this base and that every tensor has its place in it.

    Raises:
        ArtifactCorrupt: naming the first thing that does not fit.
    """
    if artifact.base_fingerprint != base.fingerprint:
        raise ArtifactCorrupt(
            f"made for the base {artifact.base_fingerprint[:12]}, not for {base.name} "
            f"({base.fingerprint[:12]})"
        )
    expected = expected_shapes(artifact, base)
    found = {name: (tuple(t.shape), t.dtype) for name, t in artifact.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ArtifactCorrupt(f"tensor {name} is missing")
        if name not in expected:
            raise ArtifactCorrupt(f"tensor {name} does not belong to this adapter")
        if found[name] != (expected[name], np.float32):
            raise ArtifactCorrupt(
                f"tensor {name} is {found[name]}, expected {expected[name]} float32"
            )


def expected_shapes(artifact: Artifact, base: Adaptable) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor an adapter of this rank and these targets must have."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in base.linear_shapes.items():
        adapted = not artifact.layers or layer_number(name) in artifact.layers
        if adapted and name.rpartition(".")[2] in artifact.target_modules:
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (artifact.rank, inputs)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, artifact.rank)
    for name, shape in base.head_shapes.items():
        shapes[f"{PREFIX}{name}"] = shape
    return shapes


def layer_number(module: str) -> int | None:
    """Which layer a module is in; None for those in none, as PEFT tells it from the name."""
    found = re.search(r"\.(\d+)\.", module)
    return int(found[1]) if found else None


def _peft_config(artifact: Artifact, base_name: str) -> dict[str, Any]:
    """What PEFT needs to load the directory by itself."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": artifact.rank,
        "lora_alpha": artifact.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(artifact.target_modules),
        "layers_to_transform": list(artifact.layers) or None,
        "modules_to_save": [artifact.head],
        "bias": "none",
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
