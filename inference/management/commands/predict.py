"""Predict a JSON Lines file; where its rows carry labels, say how good the answers are."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import CommandParser
from rich.console import Console
from rich.progress import Progress

from corrections import full_disk
from corrections.acting import ActingCommand, Refused, WrongUsage
from corrections.files import text_beside
from corrections.labels import LABELS, Label
from inference import engine

LABEL_KEYS = ("label", "correct_label")


@dataclass(frozen=True)
class Row:
    premise: str
    hypothesis: str
    label: Label | None


class Command(ActingCommand):
    help = (
        "Predict FILE: JSON Lines with premise, hypothesis (or nli_hypothesis), optionally label. "
        "Predictions go to --out, in the order of FILE."
    )
    permission = "adapters_app.predict"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path)
        parser.add_argument(
            "--adapter", default=engine.ACTIVE, metavar="active|base|VERSION", help="who answers"
        )
        parser.add_argument("--out", type=Path, help="write predictions here, as JSON Lines")

    def act(
        self, *, by: User, file: Path, adapter: str, out: Path | None, **options: Any
    ) -> dict[str, Any]:
        rows = _read(file)
        answer = _predict(adapter, rows)
        if out is not None:
            _write(out, rows, answer)
        summary = {
            "adapter": answer.adapter,
            "version": answer.version,
            "digest": answer.digest,
            "calibrator": answer.calibrator,
            "pairs": len(rows),
            **_figures(rows, answer),
        }
        for name, value in summary.items():
            self.stdout.write(
                f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}"
            )
        return summary


def _predict(adapter: str, rows: Sequence[Row]) -> engine.Answer:
    pairs = [(row.premise, row.hypothesis) for row in rows]
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("predicting", total=len(pairs))
        try:
            return engine.predict_with(
                adapter, pairs, on_batch=lambda done: progress.update(task, completed=done)
            )
        except (engine.AdapterUnknown, engine.EngineUnavailable) as error:
            raise Refused(str(error)) from error


def _read(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"{path}: {error}") from error
    rows = [_row(f"{path}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise Refused(f"{path} holds no rows.")
    return rows


def _row(where: str, line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"{where}: not a JSON object")
    premise = value.get("premise")
    hypothesis = value.get("hypothesis", value.get("nli_hypothesis"))
    if not isinstance(premise, str) or not isinstance(hypothesis, str):
        raise Refused(f"{where}: premise and hypothesis must be text")
    named = next((value[key] for key in LABEL_KEYS if value.get(key) is not None), None)
    if named is not None and named not in list(Label):
        raise Refused(f"{where}: label {named!r} is not one of {', '.join(LABELS)}")
    return Row(premise, hypothesis, Label(named) if named is not None else None)


def _write(path: Path, rows: Sequence[Row], answer: engine.Answer) -> None:
    try:
        with text_beside(path) as file:
            for row, result in zip(rows, answer.results, strict=True):
                file.write(json.dumps(_prediction(row, result), ensure_ascii=False) + "\n")
    except OSError as error:
        if full_disk.is_behind(error):
            raise
        raise Refused(f"{path} cannot be written: {error.strerror}") from error


def _prediction(row: Row, result: engine.Result) -> dict[str, Any]:
    return {
        "premise": row.premise,
        "hypothesis": row.hypothesis,
        **({"label": row.label.value} if row.label else {}),
        "predicted_label": result.label.value,
        "predicted_confidence": result.confidence,
        "raw_confidence": result.raw_confidence,
        "probabilities": dict(
            zip([label.value for label in LABELS], result.probabilities, strict=True)
        ),
    }


def _figures(rows: Sequence[Row], answer: engine.Answer) -> dict[str, Any]:
    """Accuracy, macro-F1, log loss, Brier and ECE over the labelled rows; nothing without any."""
    labelled = [
        (result.probabilities, row.label.column)
        for row, result in zip(rows, answer.results, strict=True)
        if row.label is not None
    ]
    if not labelled:
        return {"labelled": 0}
    summary = engine.score([p for p, _ in labelled], [index for _, index in labelled])
    wanted = ("accuracy", "macro_f1", "log_loss", "brier", "ece")
    return {"labelled": len(labelled), **{name: summary[name] for name in wanted}}
