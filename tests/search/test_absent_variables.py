"""Filters whose members are variables without a value."""

from typing import Any

import pytest
from graphql import GraphQLInputObjectType, GraphQLObjectType

from graph.schema import schema
from graph.types.input_conditions import ConditionsInput, optional_condition_arguments
from tests.conftest import GraphQLClient, deliver_to
from tests.support.case_loop import each_case

MESSAGES_QUERY = """query ($seen: Boolean, $subject: String, $ids: [ID!]) {
  messages(%s) { nodes { subject } } }"""


@pytest.fixture
async def ada_with_messages(ada: GraphQLClient) -> GraphQLClient:
    """Two unseen messages."""
    for subject in ("Bill", "Duck"):
        await deliver_to(ada, subject)
    return ada


async def find_subjects(client: GraphQLClient, arguments: str, **variables: Any) -> list[str]:
    """Return the subjects of the messages that these arguments find, sorted."""
    document = MESSAGES_QUERY.replace("%s", arguments)
    for name, kind in (("seen", "Boolean"), ("subject", "String"), ("ids", "[ID!]")):
        if f"${name}" not in arguments:
            document = document.replace(f"${name}: {kind}", "")
    nodes = (await client(document, **variables))["messages"]["nodes"]
    return sorted(node["subject"] for node in nodes)


async def test_absent_variable_is_an_absent_condition(ada_with_messages: GraphQLClient) -> None:
    cases: list[tuple[str, dict[str, Any], list[str]]] = [
        ("filter: {seen: $seen}", {}, ["Bill", "Duck"]),
        ("filter: {seen: $seen}", {"seen": True}, []),
        ("filter: {seen: $seen, subject: $subject}", {}, ["Bill", "Duck"]),
        ("filter: {seen: $seen, subject: $subject}", {"subject": "bill"}, ["Bill"]),
        ('filter: {seen: $seen, subject: "duck"}', {}, ["Duck"]),
        ("filter: {and: [{seen: $seen}, {subject: $subject}]}", {}, ["Bill", "Duck"]),
        ("filter: {and: [{seen: $seen}, {subject: $subject}]}", {"subject": "bill"}, ["Bill"]),
        ("filter: {attachment: {filename: $subject}}", {}, ["Bill", "Duck"]),
        ("users: {ids: $ids}", {}, ["Bill", "Duck"]),
    ]
    for case in each_case(cases):
        with case as (arguments, variables, subjects):
            for _ in range(3):  # the plain executor, and the compiled one
                assert await find_subjects(ada_with_messages, arguments, **variables) == subjects


async def test_absent_condition_that_would_select_everything_is_refused(
    ada_with_messages: GraphQLClient,
) -> None:
    cases: list[str] = [
        "filter: {not: {seen: $seen}}",
        "filter: {or: [{seen: $seen}, {subject: $subject}]}",
        "filter: {and: [{not: {seen: $seen}}]}",
    ]
    for case in each_case(cases):
        with case as arguments:
            document = MESSAGES_QUERY.replace("%s", arguments).replace(", $ids: [ID!]", "")
            if "$subject" not in arguments:
                document = document.replace(", $subject: String", "")
            response = await ada_with_messages.execute(document)
            ((code, message),) = [
                (error["extensions"]["code"], error["message"]) for error in response["errors"]
            ]
            assert (code, message.partition(". ")[0]) == (
                "BAD_USER_INPUT",
                "At least one condition is required",
            )


async def test_mutation_refuses_a_selection_of_absent_variables(
    ada_with_messages: GraphQLClient,
) -> None:
    document = """mutation ($seen: Boolean) {
      messageDelete(input: {select: {filter: {seen: $seen}}}) {
        deletedCount errors { code path } } }"""
    payload = (await ada_with_messages(document))["messageDelete"]
    expected_error = {"code": "VALIDATION", "path": ["select", "filter"]}
    assert payload == {"deletedCount": 0, "errors": [expected_error]}


async def test_missing_condition_names_only_fields_of_the_input(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    queue = await admin_client.execute("{ queue(filter: {}) { totalCount } }")
    users = await ada.execute("{ messages(users: {}) { totalCount } }")
    assert [response["errors"][0]["message"] for response in (queue, users)] == [
        "At least one condition is required. Omit the input for no condition.",
        "At least one condition is required. To select everything, set `all: true`.",
    ]


def test_conditions_with_absent_variables_are_omitted_from_every_list() -> None:
    """Also from lists whose filter is a lazy type."""
    wrong, count = set[str](), 0
    for kind in schema._schema.type_map.values():  # noqa: SLF001 - the schema of graphql-core
        for name, field in kind.fields.items() if isinstance(kind, GraphQLObjectType) else ():
            definition = field.extensions.get("strawberry-definition")
            conditions = {
                argument_name
                for argument_name, argument in field.args.items()
                if isinstance(argument.type, GraphQLInputObjectType)
                and issubclass(
                    argument.type.extensions["strawberry-definition"].origin, ConditionsInput
                )
            }
            if conditions and set(optional_condition_arguments(definition)) != conditions:
                wrong.add(f"{kind.name}.{name}")
            count += len(conditions)
    assert count > 50
    assert not wrong
