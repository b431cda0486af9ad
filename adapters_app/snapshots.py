"""Freezing accepted verdicts into an immutable, hashed training set, and reading it back."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import storages

from adapters_app.models import Snapshot
from adapters_app.nli.config import TrainConfig
from adapters_app.storage import reaching_store
from corrections.labels import Label
from corrections.models import Correction

READ_ROWS = 2000  # rows fetched from the database at a time


class SnapshotCorrupt(ValueError):
    """The stored rows are missing, or not the ones that were frozen."""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One verdict as it was when frozen; names and types of the JSON Lines."""

    correction_id: int
    pair_digest: str
    premise: str
    hypothesis: str
    label: str
    predicted_label: str
    predicted_confidence: float
    verdict: str
    fold: int
    group_id: int
    sampling: str
    sampling_probability: float | None
    domain: str
    annotator: str
    reviewed_at: str  # ISO 8601

    @property
    def pair(self) -> tuple[str, str]:
        return self.premise, self.hypothesis

    @property
    def known(self) -> bool:
        """Whether figures may be computed on it: its chance of being seen is on record."""
        return self.sampling_probability is not None

    @property
    def weight(self) -> float:
        """Inverse sampling probability; 1 where that is unknown."""
        return 1.0 / self.sampling_probability if self.sampling_probability else 1.0

    def trains(self, config: TrainConfig) -> bool:
        """Whether a run with these filters learns from it; filters or not, it is judged on."""
        return _trains(config, self.verdict, self.predicted_confidence)


@dataclass(frozen=True)
class Selection:
    """Which accepted verdicts a snapshot holds, and why others are not in it."""

    ids: list[int] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    # (label, verdict, predicted confidence) of each id
    facts: list[tuple[str, str, float]] = field(default_factory=list)

    def training_labels(self, config: TrainConfig) -> dict[str, int]:
        """Rows per label that a run with these filters would learn from."""
        return Counter(
            label for label, verdict, sure in self.facts if _trains(config, verdict, sure)
        )


def select() -> Selection:
    """Choose one accepted verdict per normalised pair; pairs people disagree on are left out."""
    accepted = Correction.objects.accepted().filter(quarantine="")
    columns = ("pair_digest", "correct_label", "verdict", "predicted_confidence")
    by_pair: dict[str, list[tuple[Any, ...]]] = {}
    for row in accepted.values_list(
        "pair_digest", "sampling_probability", "id", *columns[1:]
    ).iterator(READ_ROWS):
        by_pair.setdefault(row[0], []).append(row[1:])
    chosen: list[tuple[Any, ...]] = []
    left_out = {"duplicates": 0, "in conflict": 0}
    for verdicts in by_pair.values():
        if len({label for _, _, label, _, _ in verdicts}) > 1:
            left_out["in conflict"] += len(verdicts)
            continue
        # The one that figures can be computed on, else the newest.
        chosen.append(max(verdicts, key=lambda row: (row[0] is not None, row[1])))
        left_out["duplicates"] += len(verdicts) - 1
    chosen.sort(key=lambda row: row[1])
    return Selection([row[1] for row in chosen], left_out, [row[2:] for row in chosen])


@reaching_store()
def freeze() -> Snapshot:
    """Store the accepted verdicts of now as an immutable file named by its SHA-256, and its row.

    The same verdicts give the same file and the same row.

    Raises:
        OSError: artifact storage cannot be written.
    """
    selection = select()
    rows = _read(selection.ids)
    content = b"".join(_line(row) for row in rows)
    snapshot = Snapshot(
        digest=hashlib.sha256(content).hexdigest(),
        rows=len(rows),
        groups=len({row.group_id for row in rows}),
        label_counts={label.value: 0 for label in Label} | Counter(row.label for row in rows),
        verdict_counts=Counter(row.verdict for row in rows),
        left_out=selection.left_out,
    )
    store = storages["artifacts"]
    if not store.exists(snapshot.storage_name):
        store.save(snapshot.storage_name, ContentFile(content))
    kept, _ = Snapshot.objects.get_or_create(
        digest=snapshot.digest,
        defaults={
            name: getattr(snapshot, name)
            for name in ("rows", "groups", "label_counts", "verdict_counts", "left_out")
        },
    )
    return kept


@reaching_store()
def load(snapshot: Snapshot) -> list[SnapshotRow]:
    """Rows of a snapshot by correction id, verified by its digest.

    Raises:
        SnapshotCorrupt: the file is missing or altered.
        OSError: artifact storage cannot be read.
    """
    try:
        with storages["artifacts"].open(snapshot.storage_name) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise SnapshotCorrupt(
            f"Snapshot {snapshot.digest[:12]} is missing from artifact storage."
        ) from error
    if hashlib.sha256(content).hexdigest() != snapshot.digest:
        raise SnapshotCorrupt(
            f"Snapshot {snapshot.digest[:12]} was altered in artifact storage; restore it from a "
            "backup."
        )
    return [SnapshotRow(**json.loads(line)) for line in content.splitlines()]


def fingerprint(rows: Iterable[SnapshotRow]) -> str:
    """SHA-256 over ids, pairs and labels: which rows two models were compared on."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.correction_id} {row.pair_digest} {row.label}\n".encode())
    return digest.hexdigest()


def _read(ids: Sequence[int]) -> list[SnapshotRow]:
    rows: list[SnapshotRow] = []
    for start in range(0, len(ids), READ_ROWS):
        # Again only accepted ones: a verdict may have been reopened since it was selected.
        part = Correction.objects.accepted().filter(pk__in=ids[start : start + READ_ROWS])
        rows += [_row(correction) for correction in part.select_related("group")]
    return sorted(rows, key=lambda row: row.correction_id)


def _row(correction: Correction) -> SnapshotRow:
    direct = {f.name for f in fields(SnapshotRow)} & {f.name for f in Correction._meta.fields}
    values = {name: getattr(correction, name) for name in direct}
    values |= {
        "correction_id": correction.pk,
        "label": correction.correct_label,
        "fold": correction.group.fold,
        "group_id": correction.group_id,
        "reviewed_at": correction.reviewed_at.isoformat() if correction.reviewed_at else "",
    }
    return SnapshotRow(**values)


def _line(row: SnapshotRow) -> bytes:
    text = json.dumps(asdict(row), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _trains(config: TrainConfig, verdict: str, predicted_confidence: float) -> bool:
    if config.corrections_only and verdict != Correction.Verdict.CORRECTED:
        return False
    return predicted_confidence >= config.min_confidence
