"""The cost of a request limits its CPU time, also if its arguments are large.

A document with 40 aliases runs for each argument of a query that is a text, a list or an input.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from graphql import (
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_required_argument,
)

from tests.conftest import GraphQLClient
from tests.support.lists.input_locations import sample_value, schema

ALIAS_COUNT = 40
LIST_LENGTH = 60
MAX_NESTED_INPUTS = 2
RUN_COUNT = 3  # the first runs read and compile the document
LONG_TEXT, NESTED_TEXT = "subject:bill " * 75, "subject:bill " * 9
MAX_RATIO = 20  # of the CPU time per point of a request to the median of all requests


def large_value(value_type: Any, nested_count: int = 0) -> Any:
    """A large value of an input type: long lists and texts, and all members."""
    value_type = get_nullable_type(value_type)
    if is_list_type(value_type):
        item = large_value(value_type.of_type, nested_count + 1)
        return [item] * (LIST_LENGTH if nested_count < MAX_NESTED_INPUTS else 1)
    if is_input_object_type(value_type):
        if value_type.is_one_of:
            return sample_value(value_type)
        return {
            name: large_value(field.type, nested_count + 1)
            for name, field in value_type.fields.items()
            if nested_count < MAX_NESTED_INPUTS or is_leaf_type(get_named_type(field.type))
        }
    if str(value_type) == "String":
        return NESTED_TEXT if nested_count else LONG_TEXT
    return sample_value(value_type)


def large_requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name, the document and the variables of a request for each large argument."""
    query_type: Any = schema.type_map["Query"]
    for field_name, field in query_type.fields.items():
        for argument_name, argument in field.args.items():
            is_list = is_list_type(get_nullable_type(argument.type))
            named_type = get_named_type(argument.type)
            if not (is_list or is_input_object_type(named_type) or named_type.name == "String"):
                continue
            others = {
                name: (other.type, sample_value(other.type))
                for name, other in field.args.items()
                if is_required_argument(other) and name != argument_name
            }
            values = {argument_name: (argument.type, large_value(argument.type)), **others}
            definitions = ", ".join(f"${name}: {kind}" for name, (kind, _) in values.items())
            arguments = ", ".join(f"{name}: ${name}" for name in values)
            selection = "" if is_leaf_type(get_named_type(field.type)) else " { __typename }"
            fields = " ".join(
                f"a{n}: {field_name}({arguments}){selection}" for n in range(ALIAS_COUNT)
            )
            variables = {name: value for name, (_, value) in values.items()}
            yield (
                f"{field_name}:{argument_name}",
                f"query ({definitions}) {{ {fields} }}",
                variables,
            )


async def seconds_per_point_of_request(
    clients: list[GraphQLClient], document: str, variables: dict[str, Any]
) -> float:
    """Run a request by the first client that may use the field; return its CPU time per point."""
    seconds, response = list[float](), dict[str, Any]()
    for client in clients:
        seconds = []
        for _ in range(RUN_COUNT):
            start = time.process_time()
            response = await client.execute(document, **variables)
            seconds.append(time.process_time() - start)
        if "FORBIDDEN" not in str(response.get("errors")):
            break
    points: int = response["extensions"]["cost"]["requested"]
    return min(seconds) / points


async def test_cpu_time_per_point_is_limited_for_large_arguments(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    seconds_per_point = {
        name: await seconds_per_point_of_request([ada, root], document, variables)
        for name, document, variables in large_requests()
    }
    usual = median(seconds_per_point.values())
    too_slow = {
        name: seconds / usual
        for name, seconds in seconds_per_point.items()
        if seconds > MAX_RATIO * usual
    }
    assert not too_slow
