"""Values that are at or beyond a limit of some key of the search syntax."""

EXTREME_SEARCH_VALUES = (
    *("9999-12-31", "31-Dec-9999", "0001-01-01", "1-Jan-0001", "0001-01-01T00:00+14:00"),
    *("9999-12-31T23:59:59-12:00", "99999999999", "999999y", "P9999999999999D", "9" * 3_900),
    *("0", "-1", "nan", "1e400", "yes", '""', "*", "9" * 30 + "G", "1:*", "none:x"),
)
