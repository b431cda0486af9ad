"""Django on a home of its own, for benchmarks that call the project's functions in their process.

Import this before anything that has models. The home is deleted when the process ends; a process
started by it works in the same one.
"""

import multiprocessing
import os
import tempfile

import django
from django.apps import apps

# What would lead out of the home.
OUTSIDE = ("DATABASE_URL", "LYRA_ARTIFACTS", "LYRA_CACHE_URL", "LYRA_COMMAND_USER")

if not apps.ready:
    if multiprocessing.parent_process() is None:
        _home = tempfile.TemporaryDirectory(prefix="lyra-bench-")
        for _name in OUTSIDE:
            os.environ.pop(_name, None)
        os.environ |= {
            "LYRA_HOME": _home.name,
            "DJANGO_SETTINGS_MODULE": "lyra_site.settings",
        }
    django.setup()
