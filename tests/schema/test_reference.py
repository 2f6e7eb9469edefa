"""The examples of docs/reference: each is a document that succeeds on the server."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from graphql import parse, validate

from tests.conftest import GraphQLClient, deliver_to
from tests.support.reference.areas import iter_root_fields
from tests.support.reference.call_examples import example_of_call
from tests.support.reference.command_pages import command_pages, commands_page
from tests.support.reference.errors.documented_errors import assert_errors_are_documented
from tests.support.reference.examples import load_examples, store_mutation_examples
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.schema.access_matrix import subscription_verdict
from tests.support.schema.printed_schema import SDL

ROOT = Path(__file__).parents[2]
EXAMPLES = load_examples()
IS_WRITING = bool(os.environ.get("WRITE_EXAMPLES"))


@pytest.mark.parametrize("name", SAMPLE_CALLS)
async def test_mutation_example_succeeds(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    call = await SAMPLE_CALLS[name](ada, root)
    example = example_of_call(call)
    if IS_WRITING:
        known = {f"mutation.{call}" for call in SAMPLE_CALLS}
        mutations = {key: example for key, example in load_examples().items() if key in known}
        store_mutation_examples({**mutations, f"mutation.{name}": example})
        return
    assert EXAMPLES[f"mutation.{name}"] == example
    client = call.other_caller or (root if call.by_root else ada)
    payload = (await client(example.document, input=call.input))[name]
    assert payload["errors"] == []


def test_every_root_field_has_a_valid_example() -> None:
    fields = {f"{field.operation}.{field.name}" for field in iter_root_fields(SDL)}
    assert set(EXAMPLES) == fields
    for name, example in EXAMPLES.items():
        assert validate(SDL, parse(example.document)) == [], name
        assert json.loads(json.dumps(example.variables)) == example.variables


async def test_every_error_of_a_mutation_is_on_its_page(ada: GraphQLClient) -> None:
    """All tests compare errors with the pages. The page of labelDelete lists no QUOTA_EXCEEDED."""
    document = """mutation { labelDelete(input: {labels: [{id: "x"}]}) {
      errors { code path ... on ValidationError { constraint } } } }"""
    response = await ada.execute(document)
    assert response["data"]["labelDelete"]["errors"] == [
        {"code": "VALIDATION", "path": ["labels", "0", "id"], "constraint": "ID"}
    ]
    for wrong in ({"code": "QUOTA_EXCEEDED"}, {"code": "VALIDATION", "constraint": "TEMPLATE"}):
        data = {"labelDelete": {"errors": [wrong]}}
        with pytest.raises(AssertionError, match="labelDelete has an error that its page"):
            assert_errors_are_documented(document, {"data": data})


@dataclass(frozen=True)
class SampleObject:
    """A mutation that makes an object for a query, and what its payload has for variables."""

    mutation: str
    payload: str = ""
    variables: Mapping[str, Sequence[str | int]] = field(default_factory=dict)


# Objects that the queries need, by operation and name.
SAMPLE_OBJECTS = {
    "query.blob": SampleObject("blobCopy"),
    "query.certificate": SampleObject("certificateSet"),
    "query.connectorRun": SampleObject(
        "connectorStart", "connectorRuns { id }", {"run": ("connectorRuns", 0, "id")}
    ),
    "query.deletedUser": SampleObject("userDelete", "deletedIds", {"user": ("deletedIds", 0)}),
    "query.dkimKey": SampleObject("dkimKeySet", "dkimKeys { id }", {"key": ("dkimKeys", 0, "id")}),
    "query.aliasDomain": SampleObject(
        "aliasDomainCreate", "aliasDomain { id }", {"alias": ("aliasDomain", "id")}
    ),
    "query.filter": SampleObject("filterCreate", "filter { id }", {"filter": ("filter", "id")}),
    "query.keyValue": SampleObject("keyValueSet"),
    "query.legalHold": SampleObject(
        "legalHoldCreate", "legalHold { id }", {"hold": ("legalHold", "id")}
    ),
    "query.oauthClient": SampleObject(
        "oauthClientCreate", "oauthClient { id }", {"client": ("oauthClient", "id")}
    ),
    "query.resource": SampleObject(
        "resourceCreate", "resource { id }", {"resource": ("resource", "id")}
    ),
    "query.submission": SampleObject(
        "messageSend", "submissions { id }", {"submission": ("submissions", 0, "id")}
    ),
    "query.task": SampleObject("userImport", "task { id }", {"task": ("task", "id")}),
    "subscription.savedSearchCounters": SampleObject(
        "savedSearchCreate", "savedSearch { id }", {"search": ("savedSearch", "id")}
    ),
}
for _query, _subscription in (
    ("connectorRun", "connectorRunProgress"),
    ("submission", "submissionProgress"),
    ("task", "taskProgress"),
):
    SAMPLE_OBJECTS[f"subscription.{_subscription}"] = SAMPLE_OBJECTS[f"query.{_query}"]


async def create_sample_object(
    sample: SampleObject, ada: GraphQLClient, root: GraphQLClient
) -> dict[str, Any]:
    """Run the mutation and return the values of the query's variables."""
    call = await SAMPLE_CALLS[sample.mutation](ada, root)
    payload: Any = await replace(call, payload=sample.payload)(root if call.by_root else ada)
    assert payload["errors"] == []
    values = {}
    for name, path in sample.variables.items():
        value = payload
        for member in path:
            value = value[member]
        values[name] = value
    return values


async def load_message_variables(ada: GraphQLClient) -> dict[str, Any]:
    """The variables of queries about a message of the mailbox INBOX."""
    await deliver_to(ada, "Report")
    nodes = "messages { nodes { id messageIdHeader thread { id } } }"
    user = (await ada(f"{{ viewer {{ user {{ cursor {nodes} }} }} }}"))["viewer"]["user"]
    message = user["messages"]["nodes"][0]
    return {
        "message": message["id"],
        "messageIdHeader": message["messageIdHeader"],
        "thread": message["thread"]["id"],
        "id": message["id"],
        "ids": [message["id"], message["thread"]["id"]],
        "cursor": user["cursor"],
    }


QUERY_NAMES = [name for name in EXAMPLES if not name.startswith("mutation.")]
NEEDS_ADMINISTRATOR = re.compile(r"Requires role (DOMAIN_ADMIN|ADMIN|ROOT)")


@pytest.mark.parametrize("name", QUERY_NAMES)
async def test_query_example_succeeds(name: str, ada: GraphQLClient, root: GraphQLClient) -> None:
    operation, _, field_name = name.partition(".")
    variables = {**EXAMPLES[name].variables, **await load_message_variables(ada)}
    if sample := SAMPLE_OBJECTS.get(name):
        variables |= await create_sample_object(sample, ada, root)
    needed = {one: value for one, value in variables.items() if one in EXAMPLES[name].variables}
    root_type: Any = SDL.type_map[operation.capitalize()]
    description = root_type.fields[field_name].description
    client = root if NEEDS_ADMINISTRATOR.search(description) else ada
    if operation == "subscription":
        verdict = await subscription_verdict(
            ada.environment, client.secret, EXAMPLES[name].document, needed
        )
        assert verdict == "ALLOWED"
        return
    data = await client(EXAMPLES[name].document, **needed)
    assert data[field_name] is not None


def test_commands_page_has_every_declared_command() -> None:
    declared_count = sum(
        path.read_text().count("@declarations.command(")
        for path in (ROOT / "merganser/commands").rglob("*_declarations.py")
    )
    pages = "\n".join(command_pages().values())
    headings = re.findall(r"^## (merganser .*)", pages, re.MULTILINE)
    assert re.findall(r"^\| \[(merganser [^]]*)\]", commands_page(), re.MULTILINE) == headings
    assert len(headings) == declared_count > 40
