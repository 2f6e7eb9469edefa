"""Stored texts for people have a limit, which their description names."""

from typing import Any

import pytest
from graphql import is_input_object_type

from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.lists.input_locations import schema

FREE_TEXT_FIELDS = (
    "comment", "description", "label", "privateComment", "publicComment", "reason", "title",
)  # fmt: skip
LIMIT_WORDS = ("at most", "printable characters")
TOO_LONG = "x" * 70_000
# mutation, input without the text, and the text; the caller is ROOT
STORED_TEXTS: list[tuple[str, dict[str, Any], str]] = [
    ("addressCreate", {"address": "team@example.org"}, "publicComment"),
    ("addressCreate", {"address": "team@example.org"}, "privateComment"),
    ("appPasswordCreate", {"user": {"username": "ada"}}, "description"),
    ("certificateSet", {"serverName": "mail.example.org", "acme": True}, "description"),
    ("dkimKeySet", {"domains": [{"name": "example.org"}]}, "description"),
    ("domainCreate", {"name": "new.example"}, "description"),
    (
        "legalHoldCreate",
        {"user": {"username": "ada"}, "expiresAt": "2030-01-02T00:00:00Z"},
        "reason",
    ),
    ("temporaryAddressCreate", {}, "comment"),
]


def test_description_of_each_free_text_names_its_limit() -> None:
    undescribed = [
        f"{name}.{field_name}"
        for name, kind in schema.type_map.items()
        if is_input_object_type(kind)
        for field_name, field in kind.fields.items()
        if field_name in FREE_TEXT_FIELDS
        and "String" in str(field.type)
        and not any(words in (field.description or "") for words in LIMIT_WORDS)
    ]
    assert undescribed == []


@pytest.mark.usefixtures("ada")
async def test_too_long_text_is_refused(root: GraphQLClient) -> None:
    for case in each_case(STORED_TEXTS):
        with case as (mutation, arguments, name):
            payload = await execute_mutation(root, mutation, "", **arguments, **{name: TOO_LONG})
            assert ("VALIDATION", [name]) in [
                (error["code"], error["path"]) for error in payload["errors"]
            ]
