"""Fields of an atomic request and their errors."""

from typing import Any

from tests.conftest import Client

PAYLOAD_ERRORS = "errors { __typename code message path index }"
FAILING_RENAME = (
    f'mailboxRename(input: {{mailbox: {{path: "No"}}, newPath: "X"}}) {{ {PAYLOAD_ERRORS} }}'
)


def entry_field(key: str, *, by: str = "", options: str = "", value: str = "1") -> str:
    """The mutation field that stores an entry."""
    more = f", options: {{{options}}}" if options else ""
    given = f'{{key: "{key}", value: "{value}"{more}}}'
    name = f"{by}: " if by else ""
    fields = f"entry {{ key value }} replayed journalCursor {PAYLOAD_ERRORS}"
    return f"{name}keyValueSet(input: {given}) {{ {fields} }}"


async def load_key_values(client: Client) -> dict[str, str]:
    """Load the entries of the key-value store of a user."""
    found = await client("{ keyValues(first: 100) { nodes { key value } } }")
    return {one["key"]: one["value"] for one in found["keyValues"]["nodes"]}


def error_codes_by_field(done: Any) -> dict[str, list[str]]:
    """The error codes in the payload of each mutation field."""
    return {name: [error["code"] for error in one["errors"]] for name, one in done.items()}
