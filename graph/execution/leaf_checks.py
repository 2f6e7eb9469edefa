"""Checks of leaf values in generated code, and the way their bytes are counted."""

from datetime import datetime, timedelta

SAFE_INTEGER_CHECK = "type({v}) is not int or not -9007199254740992 < {v} < 9007199254740992"
# by scalar: the expression that is true if a value `{v}` must be converted
INVALID_VALUE_CHECKS = {
    "String": "type({v}) is not str",
    "ID": "type({v}) is not str",
    "Boolean": "type({v}) is not bool",
    "Int": "type({v}) is not int or not -2147483648 <= {v} <= 2147483647",
    "Float": "type({v}) is not float or not isfinite({v})",
    "BigInt": SAFE_INTEGER_CHECK,
    "ByteSize": SAFE_INTEGER_CHECK,
    "URL": "type({v}) is not str",
    "EmailAddress": "type({v}) is not str",
}

TEXT_SCALARS = frozenset(("String", "ID", "URL", "EmailAddress"))  # counted by length
# counted by a fixed size
FIXED_SIZE_SCALARS = frozenset(("Boolean", "Int", "Float", "BigInt", "ByteSize"))

NEVER_AWAITABLE_TYPES = frozenset({bool, bytes, datetime, dict, float, int, list, str, timedelta})
