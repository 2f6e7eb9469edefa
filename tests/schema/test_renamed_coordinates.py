"""Names of API 1.0: the list of renames is true, and words of older versions do not return."""

import csv
import re
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from models.runtime.options import Options
from resolvers.admin.setting_definitions import DEFINITIONS
from tests.support.schema import naming_rules
from tests.support.schema.printed_schema import SDL

RENAMES = Path(__file__).parents[2] / "docs" / "renames-1.0.csv"
COORDINATES = {coordinate for coordinate, _ in naming_rules.iter_describable(SDL)}
REUSED_NAMES = {
    "EventType.MESSAGE_DELETED",
    "LimitChange.limit",
    "Message.source",
}  # old names that now mean something else
SINGULAR_TABLES = {"audit_log", "setting_history", "store_incarnation"}
# Words of the older vocabulary, as parts of names: see docs/glossary.md for the words to use.
REMOVED_WORDS = (
    "account export", "account import", "act as", "acting for", "address register", "admin log",
    "adminlog", "app passwds", "archive restore", "archived", "audit access", "audit copies",
    "audit create", "audited", "authlog", "batch window", "bcc maps", "beats", "bringing",
    "correspondents", "client state", "custom two", "delimiter action", "domain desc",
    "effective setting", "enabled2fa", "evaluate priority", "extend sender", "from whitelist",
    "gone", "has password set", "headers text", "in use error", "internal data", "intro",
    "is catch", "is relayed", "is wildcard", "key info", "kick", "kicked", "lessons", "login as",
    "looks", "mailbox metadata", "mask", "masks", "master", "message forward", "message submit",
    "metadata entry", "named address", "only priority", "ours", "place turns", "post state",
    "profile reset", "pub key", "push public", "rate frame", "rate hold", "ratelimit",
    "report proven", "reported by", "require2fa", "road", "send time", "share ro", "share rw",
    "shown", "silence", "smtp ip", "spam alias", "syncjobs", "tls enforce", "told", "totp check",
    "undo until", "webauthn check", "whitelist", "wish",
)  # fmt: skip


def removed_words_in(name: str) -> list[str]:
    """Return the removed words in a name, such as a coordinate, a setting or a column."""
    name = re.sub(r"(Order\.\w+)_DESC$", r"\1", name)  # the direction of an order
    parts = [f" {' '.join(naming_rules.words(part))} " for part in re.split(r"[.(:)]", name)]
    return [removed for removed in REMOVED_WORDS if any(f" {removed} " in part for part in parts)]


def test_renamed_coordinates_exist_and_old_ones_do_not() -> None:
    with RENAMES.open(newline="", encoding="utf-8") as file:
        renames = {row["old"]: row["new"] for row in csv.DictReader(file)}
    schema_renames = {
        old: new
        for old, new in renames.items()
        if old[0].isupper() and "_" not in old.partition(".")[0]
    }
    assert set(schema_renames.values()) - COORDINATES == set()
    assert (set(schema_renames) & COORDINATES) - REUSED_NAMES == set()


def product_names() -> dict[str, set[str]]:
    """Return the names that users see or that are stored, by where they are used."""
    return {
        "schema": COORDINATES,
        "settings": {*DEFINITIONS, *Options.__dataclass_fields__},
        "tables": {
            f"{table.name}.{column.name}"
            for table in SQLModel.metadata.sorted_tables
            for column in table.columns
        },
    }


@pytest.mark.parametrize("place", product_names())
def test_removed_words_do_not_return(place: str) -> None:
    found = {name: removed_words_in(name) for name in product_names()[place]}
    assert {name: words for name, words in found.items() if words} == {}


def test_tables_are_named_after_their_classes() -> None:
    table_by_class = {
        mapper.class_.__name__: str(mapper.class_.__tablename__)
        for mapper in SQLModel._sa_registry.mappers  # noqa: SLF001 - no public list of the tables
    }
    assert {
        name: table
        for name, table in table_by_class.items()
        if table.replace("_", "") not in _plurals(name.lower()) and table not in SINGULAR_TABLES
    } == {}


def _plurals(word: str) -> set[str]:
    return {word + "s", word + "es", word.removesuffix("y") + "ies"}


def test_removed_words_are_found_in_old_names() -> None:
    old_names = ["accountExport", "Scope.MASTER", "users.kicked_at", "UserFilter.masks"]
    assert [name for name in old_names if not removed_words_in(name)] == []
