"""WSGI entry point. gunicorn alone runs no system checks, so bad settings are refused here."""

import os

from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyra_site.settings")
application = get_wsgi_application()
call_command("check")

from inference import engine, tallies  # noqa: E402  models exist once the application does

# Here and not in AppConfig.ready(): only a process that serves loads the model and keeps tallies.
engine.warm_in_background()
tallies.start_flushing()
