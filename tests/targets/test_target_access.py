"""Tests of the access of each caller to data of others (access_matrix.toml) on a running server."""

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Scope
from tests.support import item_selection
from tests.support.case_loop import each_case
from tests.support.schema.access_matrix import ACCESS_MATRIX
from tests.support.schema.declared_access import declared_access_by_coordinate, guard_of
from tests.support.schema.printed_schema import SDL
from tests.support.stores import store_fixtures
from tests.support.targets import target_mutations, target_queries, target_subscriptions
from tests.support.targets.target_accounts import (
    CALLER_RELATIONS,
    CALLERS,
    PERMISSIONS_PREFIX,
    RELATIONS,
    SCOPE_PREFIX,
    TargetServer,
    caller_with_permissions,
    caller_with_scope,
    run_target_server,
)
from tests.support.targets.target_queries import ALLOWED, REFUSED

ALLOWED_BY_CLASS = {
    name: {caller: allowed.split() for caller, allowed in of.items()}
    for name, of in ACCESS_MATRIX["target-classes"].items()
}
MUTATION_CLASSES, READ_CLASSES = (
    {
        name: decision
        for decisions in ACCESS_MATRIX[part].values()
        for name, decision in decisions.items()
    }
    for part in ("targets", "reads")
)
SUBSCRIPTION_NAMES = [name for name in READ_CLASSES if name.startswith("Subscription.")]
QUERY_NAMES = [name for name in READ_CLASSES if name not in SUBSCRIPTION_NAMES]
# Users can't delete their own account, and a key without an account has no uploads.
WITHOUT_OWN_ACCOUNT = {"Query.deletedUser", "Query.deletedUsers", "node DeletedUser", "userRestore"}
WITHOUT_PLATFORM_KEY = {"mailImport", "mailImport source"}
MUTATIONS_WITH_TWO_SCOPES = {"messageRedirect"}  # their descriptions name the second one
KEY_VALUE_MUTATIONS = {"keyValueDelete", "keyValueIncrement", "keyValueSet"}  # ROOT for others
DIALECTS = ("sqlite", "postgresql")
POSTGRES_INTERVAL = 4  # if both databases are tested, PostgreSQL has one of 4 operations
LONG_RUN_ONLY = pytest.mark.skipif(
    "LONG" not in os.environ, reason="make conformance tries all cells"
)
AccessCase = tuple[str, str, str]  # operation, caller, relation


@pytest.fixture
async def server(environment: Environment, tmp_path: Path) -> AsyncIterator[TargetServer]:
    async with run_target_server(environment, tmp_path) as access_server:
        yield access_server


def expected_decision(name: str, caller: str, relation: str) -> str:
    """Return the decision of the access matrix.

    A DOMAIN_ADMIN who has exactly the permissions that the field declares is allowed what one with
    all permissions is. An ADMIN whose key has only the scope of the field's guard is refused if
    the field declares another scope for other users.
    """
    if caller.startswith(SCOPE_PREFIX):
        access = declared_access_by_coordinate()[coordinate_of(name)]
        if access.scope and relation != "self":
            return REFUSED
        caller = "admin"
    if caller.startswith(PERMISSIONS_PREFIX):
        is_enough = caller == caller_with_permissions(declared_permissions(name))
        caller = "domain-admin" if is_enough else "domain-bare"
    allowed = ALLOWED_BY_CLASS[(MUTATION_CLASSES | READ_CLASSES)[name]].get(caller, ())
    return ALLOWED if relation in allowed else REFUSED


def names_for_store(names: Iterable[str], dialect: str) -> list[str]:
    """Return the operations to test on this database, a part of all if both databases are tested.

    The decisions don't depend on the database. tests/support/item_selection.py runs this file on
    both databases, so that each operation is tested on one of them: most on SQLite, which needs
    half of the CPU time.
    """
    all_names = list(names)
    if len(store_fixtures.STORES) < len(DIALECTS):
        return all_names
    on_postgres = all_names[::POSTGRES_INTERVAL]
    if dialect == "postgresql":
        return on_postgres
    return [name for name in all_names if name not in on_postgres]


def access_cases(name: str) -> Iterator[AccessCase]:
    """Yield all callers and relations that this operation can be tested with."""
    for caller, relation in CALLER_RELATIONS:
        is_impossible = name in WITHOUT_OWN_ACCOUNT and relation == "self"
        if not is_impossible and not (name in WITHOUT_PLATFORM_KEY and caller == "root-key"):
            yield name, caller, relation


def coordinate_of(name: str) -> str:
    """The coordinate of the field of an operation. Nodes have none."""
    first = name.partition(" ")[0]
    return first if "." in first else f"Mutation.{first}"


def declared_permissions(name: str) -> tuple[AdminPermission, ...]:
    """The permissions that the field of this operation declares for other users."""
    access = declared_access_by_coordinate().get(coordinate_of(name))
    return access.permissions if access else ()


def permission_cases(name: str) -> Iterator[AccessCase]:
    """Yield a USER's data for the caller with the declared permissions, and for those with a part.

    The decision for a DOMAIN_ADMIN without permissions is among the border cases.
    """
    if permissions := declared_permissions(name):
        yield name, caller_with_permissions(permissions), "user"
        if len(permissions) > 1:
            for permission in permissions:
                yield name, caller_with_permissions((permission,)), "user"


def scope_cases(name: str) -> Iterator[AccessCase]:
    """Yield a USER's data for an ADMIN whose key has only the scope that the field requires.

    If the field declares another scope for other users, also yield the own data of the ADMIN.
    """
    coordinate = coordinate_of(name)
    if " " in name or coordinate not in declared_access_by_coordinate():
        return
    if name in MUTATIONS_WITH_TWO_SCOPES:
        return
    scope = guard_of(coordinate).scope
    if coordinate.startswith("User."):
        scope = Scope.READ  # of the query `user`
    if scope and scope is not Scope.FULL:
        if expected_decision(name, "admin", "user") == ALLOWED:
            yield name, caller_with_scope(scope), "user"
        if declared_access_by_coordinate()[coordinate].scope:
            yield name, caller_with_scope(scope), "self"


def border_cases(name: str) -> Iterator[AccessCase]:
    """Yield for each relation the weakest allowed and the strongest refused caller.

    Then the cases that show which permission and scope other users require.
    """
    for relation in RELATIONS:
        cases = [case for case in access_cases(name) if case[2] == relation]
        allowed = [case for case in cases if expected_decision(*case) == ALLOWED]
        refused = [case for case in cases if case not in allowed]
        yield from (*allowed[:1], *refused[-1:])
    yield from permission_cases(name)
    yield from scope_cases(name)


async def request_decision(server: TargetServer, name: str, caller: str, relation: str) -> str:
    """Return "allowed" or "refused", or the reason why the response is unclear."""
    target = server.objects_of(caller, relation)
    if name in SUBSCRIPTION_NAMES:
        return await target_subscriptions.follow_target(server, name, caller, target)
    if name in READ_CLASSES:
        text, variables = target_queries.query_document(name, target, ACCESS_MATRIX["records"])
        response = await server.post(caller, text, variables)
        return target_queries.query_verdict(name, target, response.json(), response.text)
    mutation_input = target_mutations.mutation_variables(
        name, target, server.uploads.get(caller, "")
    )
    response = await server.post(
        caller, target_mutations.mutation_document(name), {"input": mutation_input}
    )
    decision = target_mutations.mutation_verdict(name, response.json())
    return (
        "refused, but with data"
        if decision == REFUSED
        and target_mutations.has_unsent_marker(response.text, mutation_input, target.marker)
        else decision
    )


async def assert_decisions(server: TargetServer, cases: Iterable[AccessCase]) -> None:
    """Assert that these cases have the decisions of the access matrix."""
    differences = []
    for case in cases:
        decision = await request_decision(server, *case)
        if decision != expected_decision(*case):
            differences.append((*case, decision))
    assert not differences


def untargeted_names(kind: str) -> set[str]:
    return set(ACCESS_MATRIX["untargeted"][kind].split())


def test_every_mutation_has_a_decision() -> None:
    assert set(MUTATION_CLASSES) == set(target_mutations.mutation_cases()) - untargeted_names(
        "Mutation"
    )
    assert untargeted_names("Mutation") <= set(target_mutations.mutation_cases())


def test_every_read_has_a_decision() -> None:
    """Each root field, user field and node type must be in the access matrix or excluded there."""
    expected = {f"{kind} contents" for kind in ACCESS_MATRIX["records"] if kind != "User"}
    for kind in ("Query", "Subscription"):
        parent: Any = SDL.type_map[kind]
        expected |= {
            f"{kind}.{name}" for name in parent.fields if name not in untargeted_names(kind)
        }
        assert untargeted_names(kind) <= set(parent.fields)
        expected.add(f"{kind}.changes position")  # the argument `after` refers to a journal
    # other arguments
    expected |= {f"Query.{name}" for name in target_queries.QUERIES if " " in name}
    user: Any = SDL.type_map["User"]
    shown = {*target_queries.plain_fields("User"), *ACCESS_MATRIX["records"]["User"].split()}
    expected |= {f"User.{name}" for name in user.fields if name not in shown}
    node: Any = SDL.type_map["Node"]
    expected |= {f"node {kind.name}" for kind in SDL.get_possible_types(node)}
    assert expected == set(READ_CLASSES)
    for kind, names in ACCESS_MATRIX["records"].items():
        assert set(names.split()) <= set(getattr(SDL.type_map[kind], "fields", ()))


def test_all_access_classes_are_used() -> None:
    assert {*MUTATION_CLASSES.values(), *READ_CLASSES.values()} == set(ALLOWED_BY_CLASS)
    assert (
        set(ACCESS_MATRIX["targets"])
        == set(ACCESS_MATRIX["reads"])
        == set(ACCESS_MATRIX["touches"])
    )
    for allowed in ALLOWED_BY_CLASS.values():
        assert set(allowed) <= set(CALLERS)
        assert set().union(*allowed.values()) <= set(RELATIONS) == set(ACCESS_MATRIX["relations"])


def test_each_border_case_is_tested_on_one_database() -> None:
    assert f"targets/{Path(__file__).name}" in item_selection.POSTGRES_FULL_FILES
    if len(store_fixtures.STORES) == len(DIALECTS):
        for names in (QUERY_NAMES, SUBSCRIPTION_NAMES, MUTATION_CLASSES):
            tested = [name for dialect in DIALECTS for name in names_for_store(names, dialect)]
            assert sorted(tested) == sorted(names)


async def assert_refusals_for_other_users_name_the_missing_scope(server: TargetServer) -> None:
    messages = {}
    for coordinate, access in declared_access_by_coordinate().items():
        if access.scope:
            name = coordinate.removeprefix("Mutation.")
            caller = caller_with_scope(guard_of(coordinate).scope or Scope.SETTINGS)
            variables = target_mutations.mutation_variables(
                name, server.objects_of(caller, "user"), upload=""
            )
            document = target_mutations.mutation_document(name)
            response = (await server.post(caller, document, {"input": variables})).json()
            messages[name] = [error["message"] for error in response["data"][name]["errors"]]
    refusals = {name: ["Requires the scope FULL."] for name in messages}
    refusals |= {name: ["Requires the role ROOT."] for name in KEY_VALUE_MUTATIONS}
    assert messages == refusals
    assert len(messages) > len(KEY_VALUE_MUTATIONS)


async def test_access_at_borders(server: TargetServer, environment: Environment) -> None:
    """One server has all cases. Mutations are last: they change what the others read."""
    await assert_refusals_for_other_users_name_the_missing_scope(server)
    for case in each_case((QUERY_NAMES, SUBSCRIPTION_NAMES, MUTATION_CLASSES)):
        with case as names:
            tested = names_for_store(names, environment.database.dialect)
            await assert_decisions(server, (item for name in tested for item in border_cases(name)))


@LONG_RUN_ONLY
async def test_mutation_access_of_all_cases(server: TargetServer) -> None:
    await assert_decisions(
        server, (item for name in MUTATION_CLASSES for item in access_cases(name))
    )


@LONG_RUN_ONLY
async def test_query_access_of_all_cases(server: TargetServer) -> None:
    await assert_decisions(server, (item for name in QUERY_NAMES for item in access_cases(name)))


@LONG_RUN_ONLY
async def test_subscription_access_of_all_cases(server: TargetServer) -> None:
    await assert_decisions(
        server, (item for name in SUBSCRIPTION_NAMES for item in access_cases(name))
    )
