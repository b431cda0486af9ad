"""The site's settings in a scratch home of this process, whatever the developer's shell exports."""

import os
import tempfile

_KEPT = {"LYRA_DEVICE", "LYRA_TORCH_THREADS"}
for _name in list(os.environ):
    if _name == "DATABASE_URL" or (_name.startswith("LYRA_") and _name not in _KEPT):
        del os.environ[_name]
_home = tempfile.TemporaryDirectory(prefix="lyra-tests-")
os.environ["LYRA_HOME"] = _home.name
# What a test starts as a process of its own is the real thing, with the real settings.
os.environ["DJANGO_SETTINGS_MODULE"] = "lyra_site.settings"

from lyra_site.settings import *  # noqa: E402, F403

# Exact, for any tiny architecture; tests of the other engine ask for it.
LYRA_ENGINE = "torch"
