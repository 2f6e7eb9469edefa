"""Lists answer the same in one request as in a request each.

LISTS_SEED says which documents are made.
"""

import os
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from graph.schema import schema as made
from tests.conftest import Client, Clock
from tests.support.lists.list_fields import (
    PARENTS,
    ListField,
    call,
    list_fields,
    narrowing,
    paging,
    required,
    selection,
)
from tests.support.lists.list_rows import fill

SEED = int(os.environ.get("LISTS_SEED", "1"))
TRIES = 6  # random arguments for each variant: the schema's rules refuse some
VARIANTS = 3  # of each list, in one request
ROUNDS = 2
ENOUGH = 3  # rows of a list, with one of the random arguments
SEVERAL, KINDS = 10, 3  # requests with lists of so many kinds, twice each
schema = made._schema  # noqa: SLF001 - what graphql-core runs
APART = {"Query.changes"}  # its `first` bounds a batch of changes, not a page
# A list that is in no request together with one whose reads it shows: each read adds a row.
SHOWS_READS = {"Audit.accessLog": "Audit.messages"}
FIELDS = {one.key: one for one in list_fields(schema) if one.key not in APART}


@dataclass(frozen=True)
class Variant:
    """One list with its arguments, the selection around it, and what it answers alone."""

    of: ListField
    around: str
    field: str
    alias: str
    alone: Any


def _at(data: Any, alias: str) -> list[Any]:
    """Return every value under this name in the response, in order."""
    if isinstance(data, list):
        return [one for item in data for one in _at(item, alias)]
    if not isinstance(data, dict):
        return []
    return [
        one
        for name, value in data.items()
        for one in ([value] if name == alias else _at(value, alias))
    ]


async def _variant(client: Client, of: ListField, number: int, dice: Random) -> Variant | None:
    """Return a variant that answers without errors alone, None if there is none."""
    alias = f"v{number}"
    for _ in range(TRIES):
        around = dice.choice(PARENTS[of.parent])
        given = narrowing(schema, of, dice)
        cursors = await _cursors(client, of, around, given)
        field = call(of, alias, given | paging(of, cursors, dice), selection(of, dice))
        answer = await client.raw("{ " + around.replace("%s", field) + " }")
        codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
        assert "INTERNAL_SERVER_ERROR" not in codes, (field, answer)
        if not codes:
            return Variant(of, around, field, alias, _at(answer["data"], alias))
    return None


async def _cursors(client: Client, of: ListField, around: str, given: dict[str, str]) -> list[str]:
    if not of.connected:
        return []
    field = call(of, "all", given | {"first": "50"}, "{ edges { cursor } }")
    answer = await client.raw("{ " + around.replace("%s", field) + " }")
    return [edge["cursor"] for page in _at(answer.get("data"), "all") for edge in page["edges"]]


def _document(variants: list[Variant], dice: Random) -> str:
    """Return one document with all variants: as fields, inline fragments and named ones."""
    parts, fragments = [], []
    for number, one in enumerate(variants):
        field, kind = one.field, one.of.parent
        match dice.randrange(3):
            case 1:
                field = f"... on {kind} {{ {field} }}"
            case 2:
                fragments.append(f"fragment F{number} on {kind} {{ {field} }}")
                field = f"...F{number}"
        parts.append(_aliased(one.around, number).replace("%s", field))
    return "query { " + " ".join(parts) + " } " + " ".join(fragments)


def _aliased(around: str, number: int) -> str:
    return around if around == "%s" else f"p{number}: {around}"


@pytest.fixture
async def filled(over: Client, ada: Client, bob: Client, clock: Clock) -> list[Client]:
    """An administrator and a user, and a store with rows in every list."""
    await fill(ada, bob, clock)
    return [over, ada]


async def test_every_list_has_rows(filled: list[Client]) -> None:
    dice, few = Random(SEED), dict[str, int]()  # noqa: S311 - no secrets are made
    for key, of in FIELDS.items():
        found = 0
        for client in filled:
            for around in PARENTS[of.parent] * TRIES:
                if found >= ENOUGH:
                    break
                given = required(schema, of, dice) | {"first": "20"}
                field = call(
                    of, "x", given, "{ nodes { __typename } }" if of.connected else "{ __typename }"
                )
                answer = await client.raw("{ " + around.replace("%s", field) + " }")
                pages = [
                    p["nodes"] if of.connected else p for p in _at(answer.get("data"), "x") if p
                ]
                found = max([found, *map(len, pages)])
        if found < ENOUGH:
            few[key] = found
    assert not sorted(few)


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_lists_answer_together_what_they_answer_alone(
    filled: list[Client], number: int
) -> None:
    dice = Random(f"{SEED} {number}")  # noqa: S311 - no secrets are made
    differences = []
    for key, of in FIELDS.items():
        client = filled[0] if number == 0 else dice.choice(filled)
        variants = await _variants(client, [of] * VARIANTS, dice)
        differences += await _differences(client, variants, dice)
        assert variants or number, key
    for _ in range(SEVERAL):
        some = dice.sample(sorted(FIELDS), KINDS)
        some = [key for key in some if SHOWS_READS.get(key) not in some]
        client = dice.choice(filled)
        variants = await _variants(client, [FIELDS[key] for key in some] * 2, dice)
        differences += await _differences(client, variants, dice)
    assert not differences, f"LISTS_SEED={SEED}\n" + "\n\n".join(differences[:5])


async def _variants(client: Client, of: list[ListField], dice: Random) -> list[Variant]:
    found = [await _variant(client, one, nth, dice) for nth, one in enumerate(of)]
    return [one for one in found if one]


async def _differences(client: Client, variants: list[Variant], dice: Random) -> list[str]:
    """Return a text for each variant that answers something else in one request with others."""
    dice.shuffle(variants)
    document = _document(variants, dice)
    answer = await client.raw(document)
    if "errors" in answer:
        return [f"{document}\n{answer['errors']}"] if variants else []
    return [
        f"{one.of.key} in {document}\nalone    {one.alone}\ntogether {found}"
        for one in variants
        if (found := _at(answer["data"], one.alias)) != one.alone
    ]
