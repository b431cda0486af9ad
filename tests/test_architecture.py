"""Who may import whom, proved in processes of their own: one straight line, no circle."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("corrections", "adapters_app", "inference", "lyra_site")
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "openvino",
    "sklearn",
    "scipy",
    "sentence_transformers",
)
# The model code that serving can do with alone.
LIGHT = (
    "artifact",
    "checkpoint",
    "encoding",
    "engines",
    "graph",
    "openvino_engine",
    "openvino_runtime",
    "reference",
)
# May import torch when imported: the recipe, and the commands that are a process to train in.
TRAINING = {
    "adapters_app.curves",
    "adapters_app.recipe",
    "adapters_app.evaluation",
    "adapters_app.fitting",
    "adapters_app.studies",
    "adapters_app.management.commands.calibrate",
    "adapters_app.management.commands.learning_curve",
    "adapters_app.management.commands.lora_study",
    "adapters_app.management.commands.run_training",
    "adapters_app.management.commands.store_reference",
    "adapters_app.management.commands.train_base",
}
# The one place that imports it inside a function.
LAZY_LOADER = "inference.engine"

# Imports every module named on the command line where none of the forbidden packages can be had.
IMPORT_WITHOUT = """
import importlib, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if any(name == root or name.startswith(root + ".") for root in FORBIDDEN):
            raise ImportError(f"{name} must not be imported here")

FORBIDDEN = sys.argv[1].split(",")
sys.meta_path.insert(0, Forbidden())
if sys.argv[2]:
    from django.conf import settings
    from lyra_site import settings as site
    values = {name: getattr(site, name) for name in dir(site) if name.isupper()}
    kept = sys.argv[2].split(",")
    ours = ("corrections.", "adapters_app.", "inference.", "lyra_site.")
    values["INSTALLED_APPS"] = ["django.contrib.admin"] + [
        app for app in site.INSTALLED_APPS
        if not app.startswith(ours) or app.split(".")[0] in kept
    ]
    del values["REST_FRAMEWORK"], values["ROOT_URLCONF"]  # name the site by strings
    del sys.modules["lyra_site.settings"], sys.modules["lyra_site"]
    FORBIDDEN.append("lyra_site")
    settings.configure(**values)
    import django
    django.setup()
for name in sys.argv[3:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("package", "may_import"),
    [
        ("corrections", {"corrections"}),
        ("adapters_app", {"adapters_app", "corrections"}),
        ("inference", {"inference", "adapters_app", "corrections"}),
    ],
)
def test_imports_follow_one_line(package: str, may_import: set[str]) -> None:
    for path, module in _imports(ROOT / package):
        root = module.split(".")[0]
        assert root not in PACKAGES or root in may_import, f"{path} imports {module}"


@pytest.mark.parametrize(
    ("package", "without"),
    [("corrections", ("adapters_app", "inference")), ("adapters_app", ("inference",))],
)
def test_a_package_works_where_those_above_it_are_not_installed(
    package: str, without: tuple[str, ...]
) -> None:
    installed = [name for name in ("corrections", "adapters_app") if name not in without]
    _import_without(without, _modules(ROOT / package), installed=installed)


def test_the_model_code_knows_no_django_and_of_us_only_the_labels() -> None:
    nli = ROOT / "adapters_app" / "nli"
    for path, module in _imports(nli):
        root = module.split(".")[0]
        assert root not in PACKAGES or module.startswith(
            ("adapters_app.nli", "corrections.labels")
        ), f"{path} imports {module}"
    _import_without(("django", "rest_framework", "inference", "lyra_site"), _modules(nli))


def test_what_every_process_imports_is_free_of_torch() -> None:
    """Models, admin, urls, tasks, every page and command: the queue forks, and pages start fast."""
    modules = [
        module
        for package in PACKAGES
        for module in _modules(ROOT / package)
        if not module.startswith("adapters_app.nli")
        and module not in TRAINING
        and module != "lyra_site.gunicorn_conf"
    ]
    program = (
        "import importlib, sys, django; django.setup()\n"
        "from django.contrib import admin\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "heavy = sorted(set(sys.argv[1].split(',')) & set(sys.modules))\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    _run(program, ",".join(HEAVY), *modules, DJANGO_SETTINGS_MODULE="lyra_site.settings")


def test_the_fast_engine_needs_no_torch() -> None:
    modules = [f"adapters_app.nli.{name}" for name in LIGHT]
    _import_without(("torch", "transformers", "peft", "sklearn", "scipy"), modules)


def test_only_the_engine_loads_torch_inside_a_function() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            module = _name(path)
            if module in TRAINING | {LAZY_LOADER} or module.startswith("adapters_app.nli."):
                continue
            late = {
                name
                for function in ast.walk(ast.parse(path.read_text()))
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
                for name in _imported(function)
                if name.startswith((*HEAVY, "adapters_app.nli", *TRAINING))
            }
            assert not late, f"{module} imports {sorted(late)} in a function"


def test_packages_do_nothing_when_imported() -> None:
    filled = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
        if path.read_text().strip()
    ]
    assert filled == []


def _modules(directory: Path) -> list[str]:
    """Dotted names of all modules below `directory`, migrations and entry points left out."""
    return [
        _name(path)
        for path in sorted(directory.rglob("*.py"))
        if "migrations" not in path.parts and path.name not in {"__init__.py", "wsgi.py"}
    ]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(directory: Path) -> Iterator[tuple[Path, str]]:
    """(file, module it names in an import) for all files below `directory`."""
    for path in sorted(directory.rglob("*.py")):
        for module in _imported(ast.parse(path.read_text())):
            yield path.relative_to(ROOT), module


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _import_without(
    forbidden: tuple[str, ...], modules: list[str], *, installed: list[str] | None = None
) -> None:
    _run(IMPORT_WITHOUT, ",".join(forbidden), ",".join(installed or []), *modules)


def _run(program: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
