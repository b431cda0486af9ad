"""How every page writes dates and times: FORMAT_MODULE_PATH has Django's own pages follow."""

DATE_FORMAT = SHORT_DATE_FORMAT = "j\xa0M\xa0Y"  # no line ends inside a date
TIME_FORMAT = "H:i"
DATETIME_FORMAT = SHORT_DATETIME_FORMAT = f"{DATE_FORMAT}, {TIME_FORMAT}"
