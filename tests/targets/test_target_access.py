"""Access of each caller to the data of others (access_matrix.toml), on a running server."""

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.runtime.environment import Environment
from tests.support import item_selection
from tests.support.schema.access_matrix import ACCESS_MATRIX
from tests.support.schema.printed_schema import SDL
from tests.support.stores import store_fixtures
from tests.support.targets import target_mutations, target_queries, target_subscriptions
from tests.support.targets.target_accounts import CALLERS, CELLS, RELATIONS, Server, furnished
from tests.support.targets.target_queries import ALLOWED, REFUSED

CLASSES = {
    name: {caller: allowed.split() for caller, allowed in of.items()}
    for name, of in ACCESS_MATRIX["target-classes"].items()
}
CHANGES, READS = (
    {
        name: decision
        for decisions in ACCESS_MATRIX[part].values()
        for name, decision in decisions.items()
    }
    for part in ("targets", "reads")
)
STREAMS = [name for name in READS if name.startswith("Subscription.")]
QUERIES = [name for name in READS if name not in STREAMS]
# Nobody's own account is deleted, and a key without an account has no uploads.
NO_SELF, NO_KEY = {"Query.deletedUser", "userRestore"}, {"mailImport", "mailImport source"}
DIALECTS = ("sqlite", "postgresql")
LONG = pytest.mark.skipif("LONG" not in os.environ, reason="make conformance tries all cells")
Try = tuple[str, str, str]  # operation, caller, relation


@pytest.fixture
async def server(world: Environment, tmp_path: Path) -> AsyncIterator[Server]:
    async with furnished(world, tmp_path) as made:
        yield made


def decided(name: str, caller: str, relation: str) -> str:
    """What the table says."""
    allowed = CLASSES[(CHANGES | READS)[name]].get(caller, ())
    return ALLOWED if relation in allowed else REFUSED


def share(names: Iterable[str], dialect: str) -> list[str]:
    """Those to try on this store: a decision doesn't depend on the store, so each has a part.

    tests/support/item_selection.py runs this file on both stores, else a part would be tried on
    neither.
    """
    if len(store_fixtures.STORES) < len(DIALECTS):
        return list(names)
    return list(names)[DIALECTS.index(dialect) :: len(DIALECTS)]


def cells(name: str) -> Iterator[Try]:
    """All callers and relations by which this operation can be tried."""
    for caller, relation in CELLS:
        without = name in NO_SELF and relation == "self"
        if not without and not (name in NO_KEY and caller == "root-key"):
            yield name, caller, relation


def borders(name: str) -> Iterator[Try]:
    """Of each relation, the weakest caller allowed and the strongest refused."""
    for relation in RELATIONS:
        there = [one for one in cells(name) if one[2] == relation]
        allowed = [one for one in there if decided(*one) == ALLOWED]
        refused = [one for one in there if one not in allowed]
        yield from (*allowed[:1], *refused[-1:])


async def answer_of(server: Server, name: str, caller: str, relation: str) -> str:
    """Allowed or refused, or else why the answer says nothing."""
    target = server.target(caller, relation)
    if name in STREAMS:
        return await target_subscriptions.follow(server, name, caller, target)
    if name in READS:
        text, variables = target_queries.document(name, target, ACCESS_MATRIX["records"])
        answer = await server.post(caller, text, variables)
        return target_queries.verdict(name, target, answer.json(), answer.text)
    given = target_mutations.variables(name, target, server.uploads.get(caller, ""))
    answer = await server.post(caller, target_mutations.document(name), {"input": given})
    found = target_mutations.verdict(name, answer.json())
    return "refused, but with data" if found == REFUSED and target.mark in answer.text else found


async def compare(server: Server, tries: Iterable[Try]) -> None:
    """Try these cells, and name those that are not as the table says."""
    wrong = []
    for one in tries:
        found = await answer_of(server, *one)
        if found != decided(*one):
            wrong.append((*one, found))
    assert not wrong


def untargeted(kind: str) -> set[str]:
    return set(ACCESS_MATRIX["untargeted"][kind].split())


def test_every_mutation_has_its_decision() -> None:
    assert set(CHANGES) == set(target_mutations.operations()) - untargeted("Mutation")
    assert untargeted("Mutation") <= set(target_mutations.operations())


def test_every_way_to_read_has_its_decision() -> None:
    """A new root field, field of an account or kind of node is in the table, or left out of it."""
    expected = {f"{kind} contents" for kind in ACCESS_MATRIX["records"] if kind != "User"}
    for kind in ("Query", "Subscription"):
        parent: Any = SDL.type_map[kind]
        expected |= {f"{kind}.{name}" for name in parent.fields if name not in untargeted(kind)}
        assert untargeted(kind) <= set(parent.fields)
        expected.add(f"{kind}.changes position")  # the argument `after` names a journal
    expected |= {
        f"Query.{name}" for name in target_queries.QUERIES if " " in name
    }  # other arguments
    user: Any = SDL.type_map["User"]
    shown = {*target_queries.plain_fields("User"), *ACCESS_MATRIX["records"]["User"].split()}
    expected |= {f"User.{name}" for name in user.fields if name not in shown}
    node: Any = SDL.type_map["Node"]
    expected |= {f"node {kind.name}" for kind in SDL.get_possible_types(node)}
    assert expected == set(READS)
    for kind, names in ACCESS_MATRIX["records"].items():
        assert set(names.split()) <= set(getattr(SDL.type_map[kind], "fields", ()))


def test_all_classes_are_used() -> None:
    assert {*CHANGES.values(), *READS.values()} == set(CLASSES)
    assert (
        set(ACCESS_MATRIX["targets"])
        == set(ACCESS_MATRIX["reads"])
        == set(ACCESS_MATRIX["touches"])
    )
    for allowed in CLASSES.values():
        assert set(allowed) <= set(CALLERS)
        assert set().union(*allowed.values()) <= set(RELATIONS) == set(ACCESS_MATRIX["relations"])


def test_each_border_is_tried_on_one_of_the_stores() -> None:
    assert f"targets/{Path(__file__).name}" in item_selection.WHOLE
    if len(store_fixtures.STORES) == len(DIALECTS):
        for names in (CHANGES, QUERIES):
            tried = [name for dialect in DIALECTS for name in share(names, dialect)]
            assert sorted(tried) == sorted(names)


async def test_borders_of_whose_data_is_changed(server: Server, world: Environment) -> None:
    await compare(
        server, (one for name in share(CHANGES, world.database.dialect) for one in borders(name))
    )


async def test_borders_of_whose_data_is_read(server: Server, world: Environment) -> None:
    await compare(
        server, (one for name in share(QUERIES, world.database.dialect) for one in borders(name))
    )


async def test_borders_of_whose_changes_are_followed(server: Server) -> None:
    await compare(server, (one for name in STREAMS for one in borders(name)))


@LONG
async def test_whose_data_is_changed(server: Server) -> None:
    await compare(server, (one for name in CHANGES for one in cells(name)))


@LONG
async def test_whose_data_is_read(server: Server) -> None:
    await compare(server, (one for name in QUERIES for one in cells(name)))


@LONG
async def test_whose_changes_are_followed(server: Server) -> None:
    await compare(server, (one for name in STREAMS for one in cells(name)))
