"""Programs outside Python that the suite needs, and the Debian packages they come from.

`python -m tests.programs` says what is missing; `make test` starts with it. Nothing is skipped.
"""

import shutil
import sys
from pathlib import Path

# program name(s), any of which will do → Debian package
PACKAGES = {
    ("pg_ctl",): "postgresql",
    ("initdb",): "postgresql",
    ("pg_dump",): "postgresql-client",
    ("psql",): "postgresql-client",
    ("redis-server",): "redis-server",
    ("chromium", "chromium-browser", "google-chrome"): "chromium",
}


class ProgramMissing(RuntimeError):
    """A program is not installed; the message names the package that has it."""


def find(*names: str) -> str:
    """The path of the first of `names` there is; raises ProgramMissing naming the package."""
    for name in names:
        if found := shutil.which(name):
            return found
        # Debian keeps PostgreSQL's server programs off the PATH; the newest version comes last.
        by_version = sorted(
            Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
            key=lambda path: float(path.parts[-3]),
        )
        if by_version:
            return str(by_version[-1])
    package = next(package for known, package in PACKAGES.items() if names[0] in known)
    raise ProgramMissing(f"{names[0]} is missing: apt-get install {package}")


def find_chromium() -> str:
    """The path of a Chromium; raises ProgramMissing."""
    return find("chromium", "chromium-browser", "google-chrome")


def missing() -> list[str]:
    """One sentence per program that is not there."""
    sentences = []
    for names in PACKAGES:
        try:
            find(*names)
        except ProgramMissing as error:
            sentences.append(str(error))
    return sentences


if __name__ == "__main__":
    sys.exit("\n".join(missing()) or 0)
