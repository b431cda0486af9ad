"""What a benchmark says: tables for people, figures for programs, and claims with their limits."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclass
class Claim:
    """A measured figure and the limit it has to keep."""

    what: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def kept(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass
class Report:
    """Tables for people, figures for programs, claims for both."""

    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)


def tell(report: Report, out: Path) -> int:
    """Print the report and write it to `out`; the exit status: 1 where a claim is broken."""
    console = Console(width=150)
    for table in report.tables:
        console.print(table)
    if report.claims:
        console.print(_limits(report.claims))
    write(report, out)
    return 0 if all(claim.kept for claim in report.claims) else 1


def write(report: Report, out: Path) -> None:
    """Write figures and claims as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = {"figures": report.figures, "claims": [_finite(claim) for claim in report.claims]}
    out.write_text(json.dumps(stored, indent=1), encoding="utf-8")


def table_of(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table: columns of names on the left, of figures on the right."""
    table = Table(title=title)
    for name in names:
        table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table


def _limits(claims: Sequence[Claim]) -> Table:
    table = table_of("Limits", ("claim",), ("measured", "limit", ""))
    for claim in claims:
        limits = {"≥": claim.low, "≤": claim.high}
        said = [f"{sign} {limit:g}" for sign, limit in limits.items() if np.isfinite(limit)]
        kept = "kept" if claim.kept else "BROKEN"
        table.add_row(claim.what, f"{claim.value:.3f}", ", ".join(said), kept)
    return table


def _finite(claim: Claim) -> dict[str, Any]:
    return {key: value for key, value in asdict(claim).items() if value not in {np.inf, -np.inf}}
