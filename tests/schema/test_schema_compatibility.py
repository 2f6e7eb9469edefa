"""The schema against that of the last release: clients that were made for it go on working.

`tests/schema/released.graphql` is the schema as it was released, the version in its first line.
Before
the first release it is the one that clients may have been made for meanwhile.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLSchema, build_schema
from graphql.utilities import (
    DangerousChangeType,
    find_breaking_changes,
    find_dangerous_changes,
)

from graph.schema import schema
from tests.support.schema.naming_rules import auth, own

ROOT = Path(__file__).parents[2]
RELEASED = (ROOT / "tests" / "schema" / "released.graphql").read_text()
VERSION = RELEASED.splitlines()[0].removeprefix("# merganser ")

HARMLESS = (  # graphql-core thinks of those who resolve fields, we of those who ask
    DangerousChangeType.OPTIONAL_ARG_ADDED,
    DangerousChangeType.OPTIONAL_INPUT_FIELD_ADDED,
)
NEW_KINDS = "it says of itself that new kinds may come"
ACCEPTED: dict[str, str] = {  # changes that break clients or may, with the reason for each
    "Enum value ChangeKind.AUTOREPLY_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.CERTIFICATE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.COMPOSE_REQUESTED was added.": NEW_KINDS,
    "Enum value ChangeKind.CONNECTOR_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.DKIM_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.FILE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.FILTER_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.IDENTITY_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.KEY_VALUE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.LABEL_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.LIMIT_REACHED was added.": NEW_KINDS,
    "Enum value ChangeKind.SAVED_SEARCH_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.SECURITY_EVENT was added.": NEW_KINDS,
    "Enum value ChangeKind.QUARANTINE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.SENDER_RULE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.SETTING_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.SIEVE_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.FORWARDING_HOST_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.RELAY_HOST_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.TLS_POLICY_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.TRANSPORT_CHANGED was added.": NEW_KINDS,
    "Enum value ChangeKind.THREAD_CHANGED was added.": NEW_KINDS,
    "Enum value ErrorCode.CONNECTOR_FAILURE was added.": "of a mutation that is new",
    "Enum value ErrorCode.IN_USE was added.": "of a mutation that is new",
    "Enum value ErrorCode.NO_SESSION was added.": "of a mutation that is new",
    "Enum value ErrorCode.SIEVE_COMPILE was added.": "of mutations that are new",
    "Enum value ErrorCode.USER_OFFLINE was added.": "of a mutation that is new",
    "Enum value ResyncReason.STORE_RESTORED was added.": "clients read their state again for every "
    "reason but OVERFLOW",
    "Field Mailbox.user changed type from User! to User.": "of what is shared one sees no "
    "account, but its `owner`",
    "Field MailAddress.address changed type from String! to String.": "text that RFC 5322 does not "
    "allow as an address is no address",
    "Enum value MessageOrder.RELEVANCE was added.": "an order is asked for, never answered",
}
NULLABLE = (
    "an error of one field of a request removed the payloads of all others, although they were done"
)
RELEASED_MUTATIONS: Any = build_schema(RELEASED).type_map["Mutation"]
ACCEPTED["Enum value ErrorCode.DAMAGED was added."] = (
    "Before, such a mutation answered INTERNAL_SERVER_ERROR and no payload"
)
ACCEPTED |= {
    f"Field Mutation.{name} changed type from {field.type} to {field.type.of_type}.": NULLABLE
    for name, field in RELEASED_MUTATIONS.fields.items()
}
ADVICE = f"""
Clients that were made for {VERSION} may fail on this. Add beside it instead, and deprecate the
old with a reason that names the new; what has been deprecated for two minor releases may go.
Where it must be: enter it in ACCEPTED with its reason, and in CHANGELOG.md. At a release
`make released` keeps the schema as it is then, and ACCEPTED begins afresh.
"""


def changes(old: GraphQLSchema, new: GraphQLSchema) -> Iterator[str]:
    """What may break clients of `old`, in words."""
    found: list[Any] = [*find_breaking_changes(old, new), *find_dangerous_changes(old, new)]
    yield from (change.description for change in found if change.type not in HARMLESS)
    yield from rights(old, new)


def rights(old: GraphQLSchema, new: GraphQLSchema) -> Iterator[str]:
    """What asks for other rights than it did: graphql-core does not look at directives."""
    after = {kind.name: kind for kind in own(new)}
    for kind in own(old):
        same = after.get(kind.name)
        if same is None or not hasattr(kind, "fields"):
            continue
        pairs = [(kind.name, kind, same)]
        fields = getattr(same, "fields", {})
        pairs += [(f"{kind.name}.{n}", f, fields[n]) for n, f in kind.fields.items() if n in fields]
        for where, before, now in pairs:
            if auth(before) != auth(now):
                yield f"{where} asked for {auth(before)}, and asks for {auth(now)}."


def test_clients_of_the_last_release_go_on_working() -> None:
    found = set(changes(build_schema(RELEASED), build_schema(schema.as_str())))
    assert found - set(ACCEPTED) == set(), ADVICE
    assert set(ACCEPTED) - found == set(), "these are no changes: accept them no more"


def test_the_released_schema_says_of_which_version_it_is() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:3]]

    assert RELEASED.startswith("# merganser ")
    assert numbers(VERSION) <= numbers(version)


OLD = """
directive @auth(role: String, scope: String) on FIELD_DEFINITION | OBJECT
type Query { user(id: ID): User @auth(role: "USER") }
type User @auth(scope: "MAIL") { name: String! age: Int @auth(role: "USER") colour: Colour }
enum Colour { RED }
"""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("age: Int @auth", "years: Int @auth", "Field User.age was removed."),
        ("name: String!", "name: String", "Field User.name changed type from String! to String."),
        ("id: ID", "id: ID!", "Argument Query.user(id:) has changed type from ID to ID!."),
        ("id: ID", "id: ID, of: Int!", "A required argument Query.user(of:) was added."),
        ("{ RED }", "{ BLUE }", "Enum value Colour.RED was removed."),
        ("{ RED }", "{ RED BLUE }", "Enum value Colour.BLUE was added."),
        ("id: ID", "id: ID = 1", None),
        ("id: ID", "id: ID, of: Int", None),
        ("name: String!", "name: String! more: Int", None),
        ("name: String!", 'name: String! @deprecated(reason: "use `more`") more: Int', None),
        (
            'age: Int @auth(role: "USER")',
            'age: Int @auth(role: "ADMIN")',
            "User.age asked for {'role': 'USER'}, and asks for {'role': 'ADMIN'}.",
        ),
        (
            'User @auth(scope: "MAIL")',
            "User",
            "User asked for {'scope': 'MAIL'}, and asks for {}.",
        ),
    ],
)
def test_what_breaks_clients_is_found(before: str, after: str, told: str | None) -> None:
    assert before in OLD
    new = build_schema(OLD.replace(before, after))
    found = list(changes(build_schema(OLD), new))
    assert (told in found) if told else (found == []), found
