"""Checks of leaf values that generated code completes, and how their bytes are counted."""

from datetime import datetime, timedelta

WHOLE = "type({v}) is not int or not -9007199254740992 < {v} < 9007199254740992"
OTHER = {  # what values must be, that are not their own response
    "String": "type({v}) is not str",
    "ID": "type({v}) is not str",
    "Boolean": "type({v}) is not bool",
    "Int": "type({v}) is not int or not -2147483648 <= {v} <= 2147483647",
    "Float": "type({v}) is not float or not isfinite({v})",
    "BigInt": WHOLE,
    "ByteSize": WHOLE,
    "URL": "type({v}) is not str",
    "EmailAddress": "type({v}) is not str",
}

TEXTS = frozenset(("String", "ID", "URL", "EmailAddress"))  # whose values are counted by length
SHORT = frozenset(("Boolean", "Int", "Float", "BigInt", "ByteSize"))  # counted as OTHER_SIZE

USUAL = frozenset({bool, bytes, datetime, dict, float, int, list, str, timedelta})
