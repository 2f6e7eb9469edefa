"""The documents of this project, and values for their variables from a store with mail in it."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.support.differential.random_documents import Author
from tests.support.differential.random_values import Dice

ROOT = Path(__file__).parents[3]
FENCE = re.compile(r"^```graphql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = ROOT / "graph" / "static" / "examples.json"


@dataclass(frozen=True)
class Stored:
    """A document of ours that is a query: where it stands, and what it is."""

    place: str
    document: DocumentNode

    @property
    def operation(self) -> OperationDefinitionNode:
        return next(n for n in self.document.definitions if isinstance(n, OperationDefinitionNode))


def texts() -> Iterator[tuple[str, str]]:
    """Every text that may be a document, and where it stands."""
    for name, value in vars(documents).items():
        if isinstance(value, str):
            yield f"bench.documents.{name}", value
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for text in FENCE.findall(page.read_text()):
            yield page.name, text
    for example in json.loads(EXAMPLES.read_text())["examples"]:
        yield f"examples: {example['name']}", example["query"]
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file.name}:{node.lineno}", node.value


def queries(schema: GraphQLSchema) -> list[Stored]:
    """The queries among them that fit the schema, each once."""
    found: dict[str, Stored] = {}
    for place, text in texts():
        if "{" not in text or text in found:
            continue
        try:
            document = parse(text)
        except GraphQLError:
            continue
        stored = [n for n in document.definitions if isinstance(n, OperationDefinitionNode)]
        if [one.operation for one in stored] != [OperationType.QUERY]:
            continue
        if not validate(schema, document):
            found[text] = Stored(place, document)
    return list(found.values())


def values(
    schema: GraphQLSchema, stored: Stored, known: dict[str, str], dice: Dice
) -> dict[str, Any]:
    """Values for the variables: ids are those of things that are there."""
    author, given = Author(schema, dice.seed), {}
    for node in stored.operation.variable_definitions or ():
        name = node.variable.name.value
        kind = type_from_ast(schema, node.type)
        assert kind
        assert is_input_type(kind)
        required = str(kind).endswith("!")
        if (node.default_value or not required) and dice.one_in(0.5):
            continue
        given[name] = _given(name, str(kind), author.input(kind, 2), known)
    return given


def _given(name: str, kind: str, random: Any, known: dict[str, str]) -> Any:
    match kind.rstrip("!"):
        case "ID":
            return known["box" if "box" in name else "message"]
        case "[ID!]" | "[ID]":
            return list(known.values())
        case "MailboxRef":
            return {"specialUse": "INBOX"}
        case "MessageRef":
            return {"id": known["message"]}
        case _:
            return random
