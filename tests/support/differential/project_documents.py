"""The queries in this project's files, and variables for them from a store with messages."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    is_input_type,
    parse,
    type_from_ast,
    validate,
)

from bench.load import documents
from tests.support.differential.random_documents import DocumentGenerator
from tests.support.differential.random_values import PathRandom
from tests.support.run_scope import RUNS_ALL_TESTS

# The tests of these documents run them too, so CI compares one of three.
TEST_DOCUMENT_INTERVAL = 1 if RUNS_ALL_TESTS else 3
PROJECT_FOLDER = Path(__file__).parents[3]
QUERY_STARTS = ("{", "query", "fragment", "#", '"')  # a description can precede an operation
GRAPHQL_BLOCK = re.compile(r"^```graphql(?: admin)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROCESS_STATE_FIELD = "cacheEntries"  # its result changes whenever a document is run
EXAMPLES_FILE = PROJECT_FOLDER / "graph" / "static" / "examples.json"


@dataclass(frozen=True)
class ProjectQuery:
    """A query in a file of this project."""

    location: str
    document: DocumentNode

    @property
    def operation(self) -> OperationDefinitionNode:
        return next(
            definition
            for definition in self.document.definitions
            if isinstance(definition, OperationDefinitionNode)
        )


def document_candidates() -> Iterator[tuple[str, str]]:
    """Yield the location and text of every string that may be a document.

    Of the strings in tests that begin like a query, yield each TEST_DOCUMENT_INTERVAL-th.
    """
    for name, value in vars(documents).items():
        if isinstance(value, str):
            yield f"bench.documents.{name}", value
    for doc_page in [
        PROJECT_FOLDER / "README.md",
        *sorted((PROJECT_FOLDER / "docs").rglob("*.md")),
    ]:
        for text in GRAPHQL_BLOCK.findall(doc_page.read_text()):
            yield doc_page.name, text
    for example in json.loads(EXAMPLES_FILE.read_text())["examples"]:
        yield f"examples: {example['name']}", example["query"]
    yield from islice(_strings_in_tests(), None, None, TEST_DOCUMENT_INTERVAL)


def _strings_in_tests() -> Iterator[tuple[str, str]]:
    """Yield the strings in the source code of tests that begin like a query."""
    for file in sorted((PROJECT_FOLDER / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and "{" in node.value
                and node.value.lstrip().startswith(QUERY_STARTS)
            ):
                yield f"{file.name}:{node.lineno}", node.value


def load_queries(schema: GraphQLSchema) -> list[ProjectQuery]:
    """Load the distinct queries that are valid for the schema."""
    query_by_text: dict[str, ProjectQuery] = {}
    for location, text in document_candidates():
        if "{" not in text or text in query_by_text or PROCESS_STATE_FIELD in text:
            continue
        try:
            document = parse(text)
        except GraphQLError:
            continue
        operations = [
            definition
            for definition in document.definitions
            if isinstance(definition, OperationDefinitionNode)
        ]
        if [operation.operation for operation in operations] != [OperationType.QUERY]:
            continue
        if not validate(schema, document):
            query_by_text[text] = ProjectQuery(location, document)
    return list(query_by_text.values())


def variable_values(
    schema: GraphQLSchema, query: ProjectQuery, known_ids: dict[str, str], random: PathRandom
) -> dict[str, Any]:
    """Generate variables; the ids are of existing objects."""
    generator, variables = DocumentGenerator(schema, random.seed), {}
    for variable in query.operation.variable_definitions or ():
        name = variable.variable.name.value
        variable_type = type_from_ast(schema, variable.type)
        assert variable_type
        assert is_input_type(variable_type)
        required = str(variable_type).endswith("!")
        if (variable.default_value or not required) and random.happens(0.5):
            continue
        variables[name] = _variable_value(
            name, str(variable_type), generator.input_value(variable_type, 2), known_ids
        )
    return variables


def _variable_value(name: str, type_name: str, random_value: Any, known_ids: dict[str, str]) -> Any:
    match type_name.rstrip("!"):
        case "ID":
            return known_ids["box" if "box" in name else "message"]
        case "[ID!]" | "[ID]":
            return list(known_ids.values())
        case "MailboxRef":
            return {"specialUse": "INBOX"}
        case "MessageRef":
            return {"id": known_ids["message"]}
        case _:
            return random_value
