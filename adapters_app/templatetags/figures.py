"""How the pages write figures: shares, differences, durations. An absent figure is a dash."""

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import template
from django.template.defaultfilters import stringfilter
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

if TYPE_CHECKING:
    from adapters_app.findings import Spread

register = template.Library()

ABSENT = "–"

# How a state looks wherever it is named: runs, conditions, verdicts, versions.
TONES = {
    "queued": "still",
    "running": "busy",
    "succeeded": "good",
    "failed": "bad",
    "cancelled": "still",
    "better": "good",
    "not_worse": "good",
    "worse": "bad",
    "inconclusive": "warn",
    "serving": "good",
    "was serving": "still",
    "never served": "still",
    "promote": "good",
    "rollback": "warn",
}


def _number(value: Any) -> float | None:
    """`value` as a finite float; None where a figure could not be had."""
    if value is None or value == "" or isinstance(value, bool):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@register.filter
def percent(value: Any, digits: int = 1) -> str:
    """A share from 0 to 1 as “78.9 %”."""
    number = _number(value)
    return ABSENT if number is None else f"{100 * number:.{digits}f} %"


def confidence(value: float) -> str:
    """An interval's confidence as “95 %”, “99.6 %” or “99.98 %”; never as certainty."""
    digits = max(1, math.ceil(-math.log10(100 * (1 - value))))
    return f"{100 * value:.{digits}f}".removesuffix(".0") + " %"


@register.filter(is_safe=True)
@stringfilter
def unbroken(text: str) -> str:
    """The same, with no line ending between a number and its “%”."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


@register.filter
def points(value: Any) -> str:
    """A difference of two shares as “+7.7 points”; a minus is a minus sign."""
    number = _number(value)
    return ABSENT if number is None else f"{_signed(100 * number, 1)} points"


@register.filter
def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign, e.g. “−0.041”."""
    number = _number(value)
    return ABSENT if number is None else _signed(number, digits)


def _signed(number: float, digits: int) -> str:
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if number > 0 else '−'}{text}"


@register.filter
def figure(value: Any, digits: int = 3) -> str:
    """A score such as a Brier score, with the same number of digits everywhere."""
    number = _number(value)
    return ABSENT if number is None else f"{number:.{digits}f}".replace("-", "−")


@register.filter
def spread(value: "Spread", digits: int = 3) -> str:
    """A mean and its standard deviation over repetitions, e.g. “0.412 ± 0.031”."""
    if value.deviation is None:
        return figure(value.mean, digits)
    return f"{figure(value.mean, digits)} ± {figure(value.deviation, digits)}"


@register.filter
def duration(seconds: Any) -> str:
    """Seconds as people say them: “45 s”, “3 min 20 s”, “2 h 5 min”."""
    number = _number(seconds)
    if number is None:
        return ABSENT
    whole = max(0, round(number))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def p_value(value: Any) -> str:
    """A p value as “= 0.012” or “< 0.001”."""
    number = _number(value)
    if number is None:
        return f"= {ABSENT}"
    return "< 0.001" if number < 0.001 else f"= {number:.3f}"


@register.filter
def learnt(value: Any) -> str:
    """A learnt parameter: a number or a list of numbers, to three digits."""
    if isinstance(value, list | tuple):
        return ", ".join(figure(item) for item in value)
    return figure(value)


@register.filter
def moment(value: datetime | None) -> str:
    """A time as “21 Nov 2026, 09:46”."""
    return ABSENT if value is None else date_format(localtime(value), "DATETIME_FORMAT")


@register.filter
def mebibytes(value: Any) -> str:
    """A number of bytes as MiB."""
    number = _number(value)
    return ABSENT if number is None else f"{number / 2**20:.1f} MiB"


@register.simple_tag
def pill(text: str, state: str = "") -> SafeString:
    """`text` as a coloured label; `state` chooses the colour where it is not the text itself."""
    tone = TONES.get(str(state or text), "still")
    return format_html('<span class="pill tone-{}">{}</span>', tone, text)


@register.filter
def tone(state: Any) -> str:
    """The colour class of a state."""
    return f"tone-{TONES.get(str(state), 'still')}"
