"""WSGI entry point. gunicorn alone runs no system checks, so bad settings are refused here."""

import os

from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

from lyra_site import home

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyra_site.settings")
site = get_wsgi_application()
call_command("check")
home.use()

from inference import (  # noqa: E402  models exist once the application does
    admission,
    engine,
    presence,
    tallies,
)
from lyra_site import content_types, direct  # noqa: E402

application = content_types.ContentTypes(admission.Admission(direct.Direct(site)))

# Here and not in AppConfig.ready(): only a process that serves loads the model and says so, and
# keeps tallies.
engine.warm_in_background()
presence.start_reporting()
tallies.start_flushing()
