"""Fields of an atomic request and their errors."""

from typing import Any

from tests.conftest import GraphQLClient

PAYLOAD_ERRORS = "errors { __typename code message path }"
FAILING_RENAME = (
    f'mailboxRename(input: {{mailbox: {{path: "No"}}, newPath: "X"}}) {{ {PAYLOAD_ERRORS} }}'
)


def entry_field(key: str, *, alias: str = "", options: str = "", value: str = "1") -> str:
    """The mutation field that stores an entry, with an alias if one is given."""
    options_argument = f", options: {{{options}}}" if options else ""
    entry_input = f'{{key: "{key}", value: "{value}"{options_argument}}}'
    name = f"{alias}: " if alias else ""
    fields = f"entry {{ key value }} replayed journalCursor {PAYLOAD_ERRORS}"
    return f"{name}keyValueSet(input: {entry_input}) {{ {fields} }}"


async def load_key_values(client: GraphQLClient) -> dict[str, str]:
    """Load the entries of the key-value store of a user."""
    data = await client("{ keyValues(first: 100) { nodes { key value } } }")
    return {entry["key"]: entry["value"] for entry in data["keyValues"]["nodes"]}


def error_codes_by_field(payloads: Any) -> dict[str, list[str]]:
    """The error codes in the payload of each mutation field."""
    return {
        name: [error["code"] for error in payload["errors"]] for name, payload in payloads.items()
    }
