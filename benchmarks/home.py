"""Django on a home of its own, for benchmarks that call the project's functions in their process.

Import this before anything that has models. The home is deleted when the process ends; a process
started by it works in the same one.
"""

import os
import tempfile

import django
from django.apps import apps

# What would lead out of the home.
OUTSIDE = ("DATABASE_URL", "LYRA_ARTIFACTS", "LYRA_CACHE_URL", "LYRA_COMMAND_USER")
# Says to processes started here that their home is this one. (Not `parent_process()`: a process
# that multiprocessing starts imports the program before it knows that it has a parent.)
MARK = "LYRA_BENCHMARK_HOME"

if not apps.ready:
    if MARK not in os.environ:
        _home = tempfile.TemporaryDirectory(prefix="lyra-bench-")
        for _name in OUTSIDE:
            os.environ.pop(_name, None)
        os.environ |= {
            MARK: _home.name,
            "LYRA_HOME": _home.name,
            "DJANGO_SETTINGS_MODULE": "lyra_site.settings",
        }
    django.setup()
