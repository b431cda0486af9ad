"""How gunicorn serves: threads, one model per process, nothing written outside LYRA_HOME.

WEB_CONCURRENCY, which gunicorn reads itself, is the number of processes (default 1).
"""

import os

from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyra_site.settings")

bind = f"{settings.LYRA_HOST}:{settings.LYRA_PORT}"
worker_class = "gthread"
# Requests wait for one another in the model, not here: a forward pass holds no thread but its own.
threads = 8
# Each process loads the model by itself: torch's thread pools and CUDA do not survive a fork.
preload_app = False
timeout = 120
graceful_timeout = 20
worker_tmp_dir = str(settings.LYRA_HOME)
# Its default is one socket per login, which two homes would share.
control_socket_disable = True
