"""What the torch reference engine said: stored facts and logits that other engines are held to.

The bundled base ships with its own; of any other base they are made once, by the reference engine,
and kept in a directory of the server's. With them an engine can start, and prove itself, without
torch.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters_app.nli.artifact import Adaptable, Artifact, expected_shapes
from adapters_app.nli.checkpoint import BUNDLED_DIR, Files
from adapters_app.nli.encoding import Pair
from adapters_app.nli.engines import Engine
from adapters_app.nli.probabilities import softmax

PAIRS_PATH = Path(__file__).parent / "bases" / "golden.jsonl"
BUNDLED_PATH = BUNDLED_DIR / "reference.json"
FORMAT = 1

FEW_ROWS = 8  # that an engine is asked for at a time, after it was asked for all at once
# Largest distance allowed between probabilities, and its mean, by the precision of the engine.
# Of what is to hold on the guard set (Δp ≤ 0.03 for 99.9 % of probabilities, 0.002 in the mean) the
# first is asked of all here. On the 28 pairs, OpenVINO's bf16 is off by up to 0.008, 0.0010 in the
# mean, for the bundled base; by up to 0.010, 0.0007 to 0.0017, for 24 random BERTs and DeBERTas. So
# the mean gets more room: no sound engine is to be refused for the base it was given, and one five
# times as far off is.
TOLERANCE = {"f32": (1e-3, 1e-4), "bf16": (0.03, 0.003)}
CLEAR_MARGIN = 0.05  # between the two most probable labels: above it labels must agree


class NoReference(LookupError):
    """Nothing usable is stored for this checkpoint; the message says why."""


class Disagreement(ValueError):
    """An engine's answers are not the reference's; the message says by how much."""


@dataclass(frozen=True)
class Reference:
    """What a base is, as the reference engine loads it, and its logits on the golden pairs.

    `bare` and `probed` are (pairs, 3) in the order of LABELS: the base's, and those of `probe`.
    """

    files_digest: str
    fingerprint: str
    label_columns: tuple[int, ...]
    max_length: int
    pad_id: int
    head: str
    target_modules: tuple[str, ...]
    pairs_sha256: str
    bare: tuple[tuple[float, ...], ...]
    probed: tuple[tuple[float, ...], ...]


def golden_pairs() -> list[Pair]:
    rows = [json.loads(line) for line in PAIRS_PATH.read_text().splitlines()]
    return [(row["premise"], row["hypothesis"]) for row in rows]


def pairs_sha256() -> str:
    return hashlib.sha256(PAIRS_PATH.read_bytes()).hexdigest()


def probe(base: Adaptable, targets: tuple[str, ...]) -> Artifact:
    """An adapter of fixed numbers that moves every answer; the same on every machine."""
    plan = Artifact(
        tensors={},
        rank=3,
        alpha=6.0,
        target_modules=targets,
        head=base.head,
        base_fingerprint=base.fingerprint,
    )
    tensors = {}
    for number, (name, shape) in enumerate(sorted(expected_shapes(plan, base).items())):
        waves = np.cos(np.arange(1, np.prod(shape) + 1, dtype=np.float64) * (1.7 + number))
        tensors[name] = (waves.reshape(shape) / np.sqrt(shape[-1])).astype(np.float32)
    return Artifact(**{**plan.__dict__, "tensors": tensors})


def stored(files: Files, directory: Path) -> tuple[Reference, str]:
    """What is stored for a checkpoint, with it or in `directory`; and its tokenizer as JSON.

    Raises:
        NoReference
    """
    if files.bundled:
        try:
            return _read(files, BUNDLED_PATH, files.tokenizer)
        except NoReference:
            pass  # of a base that was trained anew since; the server may have made its own
    return _read(files, *_paths(files.digest, directory))


def _read(files: Files, path: Path, tokenizer: Path) -> tuple[Reference, str]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        text = tokenizer.read_text()
        if values.pop("format") != FORMAT:
            raise NoReference(f"{path} is of another format")
        reference = Reference(**{key: _frozen(value) for key, value in values.items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NoReference(f"no stored logits: {error!r}") from error
    if reference.files_digest != files.digest:
        raise NoReference(f"{path.name} was made for other files than {files.name}'s")
    if reference.pairs_sha256 != pairs_sha256():
        raise NoReference(f"{path.name} was made with other golden pairs")
    return reference, text


def write(reference: Reference, tokenizer: str, directory: Path) -> None:
    """Keep a reference in `directory`; each file is whole or absent."""
    directory.mkdir(parents=True, exist_ok=True)
    path, tokenizer_path = _paths(reference.files_digest, directory)
    _write_whole(tokenizer_path, tokenizer)
    _write_whole(path, as_json(reference))


def _paths(files_digest: str, directory: Path) -> tuple[Path, Path]:
    return directory / f"{files_digest}.json", directory / f"{files_digest}.tokenizer.json"


def as_json(reference: Reference) -> str:
    return json.dumps({"format": FORMAT, **asdict(reference)}, indent=1) + "\n"


def check(engine: Engine, reference: Reference, precision: str) -> None:
    """Hold an engine to the stored logits, base and probe mixed in every pass.

    All rows are asked for at once, and then a few at a time, which an engine may compute otherwise.

    Raises:
        Disagreement
    """
    adapter = probe(engine.base, reference.target_modules)
    predictors = engine.predictor(), engine.predictor(adapter)
    rows = [(predictor, pair) for pair in golden_pairs() for predictor in predictors]
    expected = softmax(np.stack([reference.bare, reference.probed], axis=1).reshape(-1, 3))
    few = [engine.logits(rows[i : i + FEW_ROWS]) for i in range(0, len(rows), FEW_ROWS)]
    for found in (engine.logits(rows), np.concatenate(few)):
        _compare(softmax(found), expected, precision)


def _compare(found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Hold probabilities to the expected ones, each (n, 3).

    Raises:
        Disagreement
    """
    away = np.abs(found - expected)
    most, mean = TOLERANCE[precision]
    if not (away.max() <= most and away.mean() <= mean):
        raise Disagreement(
            f"its probabilities of the golden pairs are off by up to {away.max():.4f}, "
            f"{away.mean():.5f} in the mean (allowed: {most:g}, {mean:g})"
        )
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR_MARGIN
    if (found.argmax(1) != expected.argmax(1))[clear].any():
        raise Disagreement("it gives other labels to golden pairs that are not close calls")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as beside:
        beside.write(text)
        beside.flush()
        os.fsync(beside.fileno())
    Path(beside.name).replace(path)
