"""What a database looks like that cannot be used just now: gone, refusing connections, locked for
longer than the busy timeout, or read-only, as a standby is that a failover has led to.

Nobody can tell what mends itself from what somebody has to mend; trying again is right for both.
"""

from django.db import Error, InterfaceError, OperationalError

AWAY = (OperationalError, InterfaceError)
READ_ONLY = "25006"  # PostgreSQL's, which Django takes for an InternalError


def is_behind(error: BaseException | None) -> bool:
    """Whether an error says so."""
    return isinstance(error, AWAY) or is_read_only(error)


def is_read_only(error: BaseException | None) -> bool:
    """Whether a PostgreSQL that answers has refused to write."""
    return isinstance(error, Error) and getattr(error.__cause__, "sqlstate", None) == READ_ONLY
