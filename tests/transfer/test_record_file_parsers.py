"""Parsers of the fields of imported files: every value is parsed or refused."""

from collections.abc import Mapping
from typing import Any

import orjson

from models.errors import RequestError
from resolvers.addresses import file_create as address_files
from resolvers.connectors import remote_accounts
from resolvers.filters import file_create as filter_files
from resolvers.transfer.record_files import FieldParser
from resolvers.users.creation import user_records

PARSERS_BY_OBJECT: Mapping[str, Mapping[str, FieldParser]] = {
    "users": user_records.FIELD_PARSERS,
    "addresses": address_files.FIELD_PARSERS,
    "filters": filter_files.FIELD_PARSERS,
    "remote accounts": remote_accounts.FIELD_PARSERS,
}
HOSTILE_VALUES: list[Any] = [
    *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "9999-12-31", "9999-W53-7"),
    *("P9999Y99999M", "P9999999999999D", "PT1e400S", "P" + "9" * 5000 + "D", "P-1D"),
    *("nan", "inf", "-inf", "1e400", "9" * 5000, "9" * 400 + " GiB", "\u0661", "--1", "1_0"),
    *("", " ", "\0", "a\0b", "[", "{", "[" * 2000, "[]", "{}", "[[]]", "[1]", '["a", null]', ";"),
    *(True, False, None, 0, -1, 1 << 64, 10**400, 1e308, float("nan"), float("inf")),
    *([], [[]], [None], [1], [{}], ["\0"], {}, {"a": 1}, {"sent": 1}, {"sent": [{}]}, {"\0": "\0"}),
    orjson.loads("[" * 900 + "]" * 900),
]


def test_parsers_raise_only_documented_errors() -> None:
    unexpected: list[tuple[str, str, str, str]] = []
    for objects, parsers in PARSERS_BY_OBJECT.items():
        for name, parser in parsers.items():
            for value in HOSTILE_VALUES:
                try:
                    parser(value)
                except (ValueError, TypeError, KeyError, RequestError):
                    pass
                except Exception as problem:  # noqa: BLE001 - the test reports all of them
                    unexpected.append((objects, name, repr(value)[:60], repr(problem)))
    assert unexpected == []
