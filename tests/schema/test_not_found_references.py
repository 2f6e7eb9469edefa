"""NotFound errors name an object as the client did, not by its database key."""

from collections.abc import Iterator
from typing import Any

from graphql import get_named_type, is_input_object_type, is_required_argument

from graph.types import global_ids
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.reference.errors.documented_errors import assert_errors_are_documented
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input, sample_selection

assert SDL.query_type is not None
QUERIES = SDL.query_type.fields
REFERENCE_SUFFIXES = ("Ref", "Selection")
UNKNOWN_KEY = 77_777  # the key of no row


def unknown_id(kind: str) -> str:
    return str(global_ids.encode(kind, UNKNOWN_KEY))


UNKNOWN_MAILBOX = {"id": unknown_id("Mailbox")}
MESSAGE, USER = unknown_id("Message"), unknown_id("User")
CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("messageUpdate", {"select": {"ids": [MESSAGE]}, "set": {"seen": True}}, MESSAGE),
    (
        "messageUpdate",
        {"select": {"mailbox": UNKNOWN_MAILBOX}, "set": {"seen": True}},
        UNKNOWN_MAILBOX["id"],
    ),
    ("messageMove", {"select": {"all": True}, "to": UNKNOWN_MAILBOX}, UNKNOWN_MAILBOX["id"]),
    (
        "mailboxUpdate",
        {"mailboxes": [{"path": "Sent"}, UNKNOWN_MAILBOX], "set": {"hidden": True}},
        UNKNOWN_MAILBOX["id"],
    ),
    ("mailboxDelete", {"mailboxes": [UNKNOWN_MAILBOX]}, UNKNOWN_MAILBOX["id"]),
    ("mailboxDelete", {"mailboxes": [{"path": "None"}]}, "None"),
    ("mailboxRename", {"mailbox": UNKNOWN_MAILBOX, "newPath": "New"}, UNKNOWN_MAILBOX["id"]),
    ("filterDelete", {"filters": [{"id": unknown_id("Filter")}]}, unknown_id("Filter")),
    (
        "filterCreate",
        {"query": {}, "action": {"copyTo": [{"path": "INBOX"}, UNKNOWN_MAILBOX]}},
        UNKNOWN_MAILBOX["id"],
    ),
    (
        "filterCreate",
        {"query": {}, "action": {"webhook": {"id": unknown_id("Webhook")}}},
        unknown_id("Webhook"),
    ),
    ("userDelete", {"users": {"ids": [USER]}}, USER),
    ("filterCreate", {"user": {"id": USER}, "query": {}, "action": {"seen": True}}, USER),
]


async def test_not_found_error_contains_reference_of_client(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    for case in each_case(CALLS):
        with case as (name, input_, ref):
            document = f"""mutation ($input: {name[0].upper()}{name[1:]}Input!) {{
      {name}(input: $input) {{ errors {{ code message ... on NotFoundError {{ ref }} }} }} }}"""
            client = root if USER in str(input_) else ada
            data = await client(document, input=input_)
            (error,) = assert_errors_are_documented(document, {"data": data})["data"][name][
                "errors"
            ]
            assert (error["code"], error["ref"]) == ("NOT_FOUND", ref)
            assert str(UNKNOWN_KEY) not in str(error)


def calls_with_references() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each query with the arguments that it requires, and each reference that it can have."""
    for name, query in QUERIES.items():
        required = {
            argument: sample_input(value.type)
            for argument, value in query.args.items()
            if is_required_argument(value)
        }
        yield name, required
        for argument, value in query.args.items():
            kind = get_named_type(value.type)
            if not is_input_object_type(kind) or kind.is_one_of:
                yield name, required | {argument: sample_input(value.type)}
                continue
            for member, inner in kind.fields.items():
                if get_named_type(inner.type).name.endswith(REFERENCE_SUFFIXES):
                    condition = {member: sample_input(inner.type)}
                    yield name, required | {argument: condition}


async def test_not_found_error_of_a_query_names_the_type(root: GraphQLClient) -> None:
    not_found_messages = []
    for name, arguments in calls_with_references():
        query = QUERIES[name]
        variables = ", ".join(f"${key}: {query.args[key].type}" for key in arguments)
        values = ", ".join(f"{key}: ${key}" for key in arguments)
        document = f"query {f'({variables})' if variables else ''} {{ {name}"
        document += f"{f'({values})' if values else ''} {sample_selection(query)} }}"
        response = await root.execute(document, **arguments)
        not_found_messages += [
            f"{name}: {error['message']}"
            for error in response.get("errors", [])
            if error["extensions"]["code"] == "NOT_FOUND"
        ]
    assert len(not_found_messages) > 1
    assert [message for message in not_found_messages if "Object" in message] == []
