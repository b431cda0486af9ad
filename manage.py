#!/usr/bin/env python
"""Django's command line for Lyra's correction loop."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import OperationalError, ProgrammingError

from corrections import full_disk, schema


def main() -> None:
    """Run the command; what an operator has to mend is a line, not a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyra_site.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"ImproperlyConfigured: {error}")
    except (OSError, OperationalError, ProgrammingError) as error:
        if full_disk.is_behind(error):
            sys.exit(full_disk.in_a_command(error))
        if isinstance(error, OSError) or not schema.is_behind():
            raise
        sys.exit(schema.RUN_MIGRATE)


if __name__ == "__main__":
    main()
