"""Names of API 1.0: the list of renames is true, and words of older versions do not return."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLEnumType, GraphQLSchema, build_schema
from sqlmodel import SQLModel

from graph.schema import schema
from models.runtime.options import Options
from resolvers.admin.setting_definitions import DEFINITIONS

RENAMES = Path(__file__).parents[2] / "docs" / "renames-1.0.csv"
SDL = build_schema(schema.as_str())
REUSED_NAMES = {"ChangeKind.MESSAGE_DELETED"}  # old names that now mean something else
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")
# Words of the older vocabulary, as parts of names: see docs/glossary.md for the words to use.
REMOVED_WORDS = (
    "account export", "account import", "act as", "acting for", "address register", "admin log",
    "adminlog", "app passwds", "archive restore", "archived", "audit access", "audit copies",
    "audit create", "audited", "authlog", "batch window", "bcc maps", "client state", "custom two",
    "delimiter action", "domain desc", "effective setting", "enabled2fa",
    "evaluate priority", "extend sender", "from whitelist", "has password set", "headers text",
    "in use error", "internal data", "intro", "is catch", "is relayed", "is wildcard", "key info",
    "kick", "kicked", "login as", "mailbox metadata", "mask", "masks", "master",
    "message forward", "message submit", "metadata entry", "named address", "only priority",
    "post state", "profile reset", "pub key", "push public", "rate frame", "rate hold", "ratelimit",
    "report proven", "reported by", "require2fa", "road", "send time", "share ro", "share rw",
    "silence", "smtp ip", "spam alias", "syncjobs", "tls enforce", "totp check", "undo until",
    "webauthn check", "whitelist",
)  # fmt: skip


def coordinates(schema: GraphQLSchema) -> set[str]:
    """Return the coordinates of all types, fields, arguments and enum values."""
    names: set[str] = set()
    for type_name, type_ in schema.type_map.items():
        names.add(type_name)
        if isinstance(type_, GraphQLEnumType):
            names.update(f"{type_name}.{value}" for value in type_.values)
        members: dict[str, Any] = getattr(type_, "fields", {})
        for name, member in members.items():
            names.add(f"{type_name}.{name}")
            names.update(
                f"{type_name}.{name}({argument}:)" for argument in getattr(member, "args", {})
            )
    return names


def test_renamed_coordinates_exist_and_old_ones_do_not() -> None:
    with RENAMES.open(newline="", encoding="utf-8") as file:
        renames = {row["old"]: row["new"] for row in csv.DictReader(file)}
    schema_renames = {
        old: new
        for old, new in renames.items()
        if old[0].isupper() and "_" not in old.partition(".")[0]
    }
    names = coordinates(SDL)
    assert set(schema_renames.values()) - names == set()
    assert (set(schema_renames) & names) - REUSED_NAMES == set()


def product_names() -> dict[str, set[str]]:
    """Return the names that users see or that are stored, by where they are used."""
    return {
        "schema": {name for name in coordinates(SDL) if not name.startswith("__")},
        "settings": {*DEFINITIONS, *Options.__dataclass_fields__},
        "tables": {
            f"{table.name}.{column.name}"
            for table in SQLModel.metadata.sorted_tables
            for column in table.columns
        },
    }


@pytest.mark.parametrize("place", product_names())
def test_removed_words_do_not_return(place: str) -> None:
    found = []
    for name in product_names()[place]:
        for part in re.split(r"[.(:)]", name):
            words = f" {' '.join(WORD.findall(part)).lower()} "
            found += [(name, removed) for removed in REMOVED_WORDS if f" {removed} " in words]
    assert found == []


def test_removed_words_are_found_in_old_names() -> None:
    old_names = ["accountExport", "Scope.MASTER", "users.kicked_at", "UserFilter.masks"]
    for name in old_names:
        words = " ".join(WORD.findall(name.replace("_", " "))).lower()
        assert any(f" {removed} " in f" {words} " for removed in REMOVED_WORDS), name
