"""Names that changed before the first release: their list is true, and old words do not return."""

import re
from collections.abc import Collection

import pytest
from sqlmodel import SQLModel

from models.runtime.options import Options
from resolvers.admin.setting_definitions import DEFINITIONS
from tests.support.schema import naming_rules
from tests.support.schema.renames import (
    CURRENT_NAMES,
    OLD_NAMES_FILE,
    REMOVED,
    RENAMES_FILE,
    Rename,
    complete_renames,
    format_renames,
    read_renames,
    read_vanished_names,
)

_SCHEMA_NAME = re.compile(r"@?[A-Z][^_]*($|\.)")  # not a setting
REUSED_NAMES = {
    "AdminPermission.SPAM_POLICY",
    "EventType.MESSAGE_DELETED",
    "LimitChange.limit",
    "MessageFilter.to",
    "UserPermission.SPAM_POLICY",
}  # old names that now mean something else
SINGULAR_TABLES = {"audit_log", "setting_history", "store_incarnation"}
# Words of the older vocabulary, as parts of names: see docs/glossary.md for the words to use.
REMOVED_WORDS = (
    "account export", "account import", "act as", "acting for", "address register", "admin log",
    "adminlog", "app passwds", "archive restore", "archived", "audit access", "audit copies",
    "audit create", "audited", "auth event", "auth log", "authlog", "batch window", "bcc maps",
    "beats", "bringing",
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


SCHEMA_RENAMES = {old: row for old, row in read_renames().items() if _SCHEMA_NAME.match(old)}


def test_each_vanished_name_has_a_row() -> None:
    assert set(read_vanished_names()) - set(SCHEMA_RENAMES) == set()
    assert len(OLD_NAMES_FILE.read_text(encoding="utf-8").split()) > len(read_vanished_names())


def test_list_of_renames_is_written_by_the_program() -> None:
    completed = complete_renames(read_renames(), read_vanished_names())
    assert list(format_renames(completed)) == RENAMES_FILE.read_text("utf-8").splitlines()


def test_renamed_coordinates_exist_and_old_ones_do_not() -> None:
    new_names = {row.new for row in SCHEMA_RENAMES.values()} - {REMOVED}
    assert new_names - CURRENT_NAMES == set()
    assert (set(SCHEMA_RENAMES) & CURRENT_NAMES) - REUSED_NAMES == set()


def test_removed_names_say_what_to_use() -> None:
    removed = {old: row.use for old, row in SCHEMA_RENAMES.items() if row.new == REMOVED}
    assert {old for old, use in removed.items() if not use} == set()
    mentioned = {name for use in removed.values() for name in re.findall(r"[A-Z]\w+\.\w+", use)}
    assert mentioned - CURRENT_NAMES == set()


def test_vanished_member_of_a_renamed_type_is_found_in_the_new_type() -> None:
    rows = {"ActAsInput": Rename("UserImpersonateInput"), "Outbound": Rename(REMOVED, "Nothing.")}
    names = ["ActAsInput.user", "ActAsInput.unknown", "Outbound.entries"]
    assert complete_renames(rows, names) == rows | {
        "ActAsInput.user": Rename("UserImpersonateInput.user"),
        "Outbound.entries": Rename(REMOVED, "Nothing."),
    }


def product_names() -> dict[str, Collection[str]]:
    """Return the names that users see or that are stored, by where they are used."""
    return {
        "schema": CURRENT_NAMES,
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
