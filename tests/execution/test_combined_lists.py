"""Several lists in one request return the same as each list in its own request.

The environment variable LISTS_SEED sets the seed of the random documents.
"""

import os
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from graph.schema import schema as product_schema
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.lists.list_fields import (
    LISTS_OUTSIDE_THE_DATABASE,
    PAGE_ARGUMENTS,
    PARENT_SELECTIONS,
    ListField,
    aliased_field,
    filter_arguments,
    list_fields,
    page_arguments,
    page_selection,
    required_arguments,
)
from tests.support.lists.list_rows import add_administered_domains, add_list_rows
from tests.support.run_scope import RUNS_ALL_TESTS

SEED = int(os.environ.get("LISTS_SEED", "1"))
MAX_TRIES = 12  # random arguments for each variant: the rules of the schema refuse some of them
VARIANT_COUNT = 3 if RUNS_ALL_TESTS else 2  # of each list, in one request
ROUNDS = 2 if RUNS_ALL_TESTS else 1
CURSOR_SHARE = 0.6  # of the variants whose pages begin at a cursor
MIN_ROW_COUNT = 3  # rows that each list returns with one of the random arguments
MIXED_REQUEST_COUNT = 10  # requests with several different lists
LISTS_PER_REQUEST = 3  # each list twice
schema = product_schema._schema  # noqa: SLF001 - the schema that graphql-core executes
# `first` of Query.changes limits a batch of changes, not a page.
EXCLUDED_LISTS = {"Query.changes", *LISTS_OUTSIDE_THE_DATABASE}
# These lists are not in one request: each read of the second list adds a row to the first.
LOGS_READS_OF = {"LegalHold.accessLog": "LegalHold.messages"}
# `totalCount` is a counter, which the rows of `add_list_rows` don't change.
LISTS_WITH_COUNTERS = {
    "Query.users", "Domain.users", "Mailbox.messages", "User.messages", "Query.messages",
    "SavedSearch.messages",
}  # fmt: skip
LIST_FIELDS = {field.key: field for field in list_fields(schema) if field.key not in EXCLUDED_LISTS}


@dataclass(frozen=True)
class ListVariant:
    """One list with its arguments, the selection around it, and its result when it is alone."""

    list_field: ListField
    parent_selection: str
    field: str
    alias: str
    expected: Any


def _values_by_alias(data: Any, alias: str) -> list[Any]:
    """Return every value under this alias in the response, in order."""
    if isinstance(data, list):
        return [match for item in data for match in _values_by_alias(item, alias)]
    if not isinstance(data, dict):
        return []
    return [
        match
        for name, value in data.items()
        for match in ([value] if name == alias else _values_by_alias(value, alias))
    ]


async def _random_variant(
    client: GraphQLClient, list_field: ListField, number: int, random: Random
) -> ListVariant | None:
    """Return a variant that has no errors when it is requested alone, or None."""
    alias = f"v{number}"
    for _ in range(MAX_TRIES):
        parent_selection = random.choice(PARENT_SELECTIONS[list_field.parent])
        arguments = filter_arguments(schema, list_field, random)
        cursors = (
            await _list_cursors(client, list_field, parent_selection, arguments)
            if random.random() < CURSOR_SHARE
            else []
        )
        field = aliased_field(
            list_field,
            alias,
            arguments | page_arguments(list_field, cursors, random),
            page_selection(list_field, random),
        )
        answer = await client.execute("{ " + parent_selection.replace("%s", field) + " }")
        codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
        assert "INTERNAL_SERVER_ERROR" not in codes, (field, answer)
        if not codes:
            return ListVariant(
                list_field, parent_selection, field, alias, _values_by_alias(answer["data"], alias)
            )
    return None


async def _list_cursors(
    client: GraphQLClient, list_field: ListField, parent_selection: str, arguments: dict[str, str]
) -> list[str]:
    if not list_field.is_connection:
        return []
    field = aliased_field(list_field, "all", arguments | {"first": "50"}, "{ edges { cursor } }")
    answer = await client.execute("{ " + parent_selection.replace("%s", field) + " }")
    return [
        edge["cursor"]
        for page in _values_by_alias(answer.get("data"), "all")
        if page  # null: this viewer may not read it, or an argument is invalid
        for edge in page["edges"]
    ]


def _combined_document(variants: list[ListVariant], random: Random) -> str:
    """Return one document with all variants: as fields, inline fragments or named fragments."""
    parts, fragments = [], []
    for number, variant in enumerate(variants):
        field, kind = variant.field, variant.list_field.parent
        match random.randrange(3):
            case 1:
                field = f"... on {kind} {{ {field} }}"
            case 2:
                fragments.append(f"fragment F{number} on {kind} {{ {field} }}")
                field = f"...F{number}"
        parts.append(_with_parent_alias(variant.parent_selection, number).replace("%s", field))
    return "query { " + " ".join(parts) + " } " + " ".join(fragments)


def _with_parent_alias(parent_selection: str, number: int) -> str:
    return parent_selection if parent_selection == "%s" else f"p{number}: {parent_selection}"


@pytest.fixture
async def clients_with_data(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> list[GraphQLClient]:
    """Clients of an administrator, a user and a DOMAIN_ADMIN; every list has rows."""
    chief = await make_domain_admin(ada.environment, ada.http, "chief")
    for number in range(MIN_ROW_COUNT):  # only a ROOT can search the index for others
        await deliver_to(admin_client, raw_message(f"Own {number}", body="word1 answer"))
    await add_list_rows(ada, bob, clock)
    await add_administered_domains(chief)
    return [admin_client, ada, chief]


async def test_lists_have_consistent_pages_and_the_same_rows_in_one_request(
    clients_with_data: list[GraphQLClient],
) -> None:
    await check_row_counts(clients_with_data)
    for number in range(ROUNDS):
        await check_lists_in_one_request(clients_with_data, number)
    await check_pages_of_all_lists(clients_with_data)


async def check_row_counts(clients_with_data: list[GraphQLClient]) -> None:
    """Require that every list has rows."""
    random, too_few = Random(SEED), dict[str, int]()  # noqa: S311 - not used for secrets
    for key, list_field in LIST_FIELDS.items():
        row_count = 0
        for client in clients_with_data:
            for parent_selection in PARENT_SELECTIONS[list_field.parent] * MAX_TRIES:
                if row_count >= MIN_ROW_COUNT:
                    break
                arguments = required_arguments(schema, list_field, random) | {"first": "20"}
                field = aliased_field(
                    list_field,
                    "x",
                    arguments,
                    "{ nodes { __typename } }" if list_field.is_connection else "{ __typename }",
                )
                answer = await client.execute("{ " + parent_selection.replace("%s", field) + " }")
                pages = [
                    page["nodes"] if list_field.is_connection else page
                    for page in _values_by_alias(answer.get("data"), "x")
                    if page
                ]
                row_count = max([row_count, *map(len, pages)])
        if row_count < MIN_ROW_COUNT:
            too_few[key] = row_count
    assert not sorted(too_few)


async def check_lists_in_one_request(clients_with_data: list[GraphQLClient], number: int) -> None:
    """Compare the result of each list in one request with its result alone."""
    random = Random(f"{SEED} {number}")  # noqa: S311 - not used for secrets
    differences = []
    for key, list_field in LIST_FIELDS.items():
        client = clients_with_data[0] if number == 0 else random.choice(clients_with_data)
        variants = await _random_variants(client, [list_field] * VARIANT_COUNT, random)
        differences += await _different_results(client, variants, random)
        assert variants or number, key
    for _ in range(MIXED_REQUEST_COUNT):
        keys = random.sample(sorted(LIST_FIELDS), LISTS_PER_REQUEST)
        keys = [key for key in keys if LOGS_READS_OF.get(key) not in keys]
        client = random.choice(clients_with_data)
        variants = await _random_variants(client, [LIST_FIELDS[key] for key in keys] * 2, random)
        differences += await _different_results(client, variants, random)
    assert not differences, f"LISTS_SEED={SEED}\n" + "\n\n".join(differences[:5])


async def _random_variants(
    client: GraphQLClient, list_fields: list[ListField], random: Random
) -> list[ListVariant]:
    variants = [
        await _random_variant(client, list_field, number, random)
        for number, list_field in enumerate(list_fields)
    ]
    return [list_field for list_field in variants if list_field]


async def _different_results(
    client: GraphQLClient, variants: list[ListVariant], random: Random
) -> list[str]:
    """Return a text for each variant with a different result in one request."""
    random.shuffle(variants)
    document = _combined_document(variants, random)
    answer = await client.execute(document)
    if "errors" in answer:
        return [f"{document}\n{answer['errors']}"] if variants else []
    return [
        f"{variant.list_field.key} in {document}\nalone    {variant.expected}\ntogether {result}"
        for variant in variants
        if (result := _values_by_alias(answer["data"], variant.alias)) != variant.expected
    ]


async def check_pages_of_all_lists(clients_with_data: list[GraphQLClient]) -> None:
    """Require that the pages of each list in both directions add up to the list."""
    random = Random(SEED)  # noqa: S311 - not used for secrets
    wrong_counts = set()
    for list_field in LIST_FIELDS.values():
        if list_field.is_connection and list_field.key not in LOGS_READS_OF:
            literals = required_arguments(schema, list_field, random)
            for index, client in enumerate(clients_with_data):
                parent_selections = PARENT_SELECTIONS[list_field.parent]
                if index and not RUNS_ALL_TESTS:  # the administrator sees the objects of others
                    parent_selections = parent_selections[-1:]
                for parent_selection in parent_selections:
                    if not await _check_pages(client, list_field, parent_selection, literals):
                        wrong_counts.add(list_field.key)
    assert wrong_counts <= LISTS_WITH_COUNTERS


async def _load_page(
    client: GraphQLClient,
    list_field: ListField,
    parent_selection: str,
    literals: dict[str, str],
    **page: Any,
) -> Any:
    """Load a page with these arguments; None if the viewer can't see the list.

    Its position is in variables, so that the server prepares one document for all pages of a list.
    """
    count = "totalCount" if "totalCount" in list_field.fields else ""
    selected = f"{{ edges {{ cursor }} {count} pageInfo {{ hasNextPage hasPreviousPage }} }}"
    variables = {name: f"${name}" for name in PAGE_ARGUMENTS}
    field = aliased_field(list_field, "page", literals | variables, selected)
    types = ", ".join(f"${name}: {list_field.field.args[name].type}" for name in PAGE_ARGUMENTS)
    document = f"query ({types}) {{ {parent_selection.replace('%s', field)} }}"
    answer = await client.execute(document, **page)
    return next(iter(_values_by_alias(answer.get("data"), "page")), None)


async def _check_pages(
    client: GraphQLClient, list_field: ListField, parent_selection: str, literals: dict[str, str]
) -> bool:
    """Compare pages of a list in both directions with one long page of it.

    Returns True if `totalCount` is the number of its items.
    """
    long_page = await _load_page(client, list_field, parent_selection, literals, first=250)
    cursors = [edge["cursor"] for edge in long_page["edges"]] if long_page else []
    if not cursors:
        return True
    middle = len(cursors) // 2
    is_longer = len(cursors) > 1
    expected_pages: list[tuple[dict[str, Any], list[str], bool, bool]] = [
        ({"first": 1}, cursors[:1], is_longer, False),
        ({"last": 1}, cursors[-1:], False, is_longer),
        ({"first": 250, "after": cursors[middle]}, cursors[middle + 1 :], False, True),
        ({"last": 250, "before": cursors[middle]}, cursors[:middle], True, False),
    ]
    for arguments, expected_cursors, has_next, has_previous in expected_pages:
        page = await _load_page(client, list_field, parent_selection, literals, **arguments)
        assert [edge["cursor"] for edge in page["edges"]] == expected_cursors, list_field.key
        page_info = {"hasNextPage": has_next, "hasPreviousPage": has_previous}
        assert page["pageInfo"] == page_info, list_field.key
    return bool(long_page.get("totalCount", len(cursors)) == len(cursors))
