"""Example documents of root fields, which tests run."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graphql import OperationDefinitionNode, parse, print_ast

QUERIES_FILE = Path(__file__).with_name("queries.graphql")
EXAMPLES_FILE = Path(__file__).with_name("mutations.json")
QUERY_VARIABLES = {  # values of variables that are not ids
    "address": "ada@example.org",
    "content": 'require "fileinto"; fileinto "Keep";',
    "cursor": "CURSOR",
    "id": "MESSAGE_ID",
    "ids": ["MESSAGE_ID", "THREAD_ID"],
    "messageIdHeader": "<1@example.com>",
    "raw": "From: carol@example.com\r\nSubject: Report\r\n\r\nHello\r\n",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A document with its variables. Placeholders such as `MESSAGE_ID` stand for ids."""

    document: str
    variables: dict[str, Any] = field(default_factory=dict)


def load_examples() -> dict[str, Example]:
    """Load all examples, by operation and name such as `mutation.mailboxCreate`."""
    mutations = {key: Example(**members) for key, members in _stored_mutations().items()}
    return {**_query_examples(), **mutations}


def _stored_mutations() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(EXAMPLES_FILE.read_text(encoding="utf-8"))
    return result


def _query_examples() -> dict[str, Example]:
    """The operations of queries.graphql. A variable `$message` has the value MESSAGE_ID."""
    examples = {}
    for operation in parse(QUERIES_FILE.read_text(encoding="utf-8")).definitions:
        assert isinstance(operation, OperationDefinitionNode)
        assert operation.name
        name = operation.name.value[0].lower() + operation.name.value[1:]
        names = [
            definition.variable.name.value for definition in operation.variable_definitions or ()
        ]
        variables = {name: QUERY_VARIABLES.get(name, f"{name.upper()}_ID") for name in names}
        key = f"{operation.operation.value}.{name}"
        examples[key] = Example(print_ast(operation), variables)
    return examples


def store_mutation_examples(examples: dict[str, Example]) -> None:
    """Write the examples of mutations, sorted by name."""
    members = {key: asdict(example) for key, example in sorted(examples.items())}
    text = json.dumps(members, indent=1, ensure_ascii=False)
    EXAMPLES_FILE.write_text(f"{text}\n", encoding="utf-8")
