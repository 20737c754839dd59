"""The start of a period that somebody has named: so long ago, or a date."""

import re
from datetime import UTC, datetime, timedelta

PERIOD = r"^[0-9]{1,5}[dh]$"
"""Pattern of a number of days or hours, such as 7d or 12h."""

_UNITS = {"d": "days", "h": "hours"}


def parse_start(text: str) -> datetime:
    """Returns the time at which a period starts.

    Args:
        text: so many days or hours ago, such as 7d or 12h; or a date or time in ISO format, such as 2026-05-01, in UTC
            if it names no other zone.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> parse_start("2026-05-01").isoformat()
        '2026-05-01T00:00:00+00:00'
    """
    if re.fullmatch(PERIOD, text):
        return datetime.now(UTC) - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither 7d, 12h nor a date such as 2026-05-01") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
