"""Descriptions say which role, scope and permission a field needs, and what it costs."""

from collections.abc import Iterator
from typing import Any

from graphql import DirectiveNode, parse, print_ast
from graphql.language import ast

from tests.conftest import GraphQLClient
from tests.support.schema.printed_schema import SCHEMA_TEXT

NO_TEXT = {"role": {"USER", "PUBLIC"}, "weight": {"1"}, "perItem": {"false"}}
INTROSPECTION = """query ($type: String!) {
  __type(name: $type) { description fields { name description } inputFields { name description } }
}"""


def directives_by_coordinate() -> Iterator[tuple[str, str, list[DirectiveNode]]]:
    """Yield type, field (empty for the type) and directives of the printed schema."""
    for definition in parse(SCHEMA_TEXT).definitions:
        if isinstance(definition, ast.ObjectTypeDefinitionNode | ast.InputObjectTypeDefinitionNode):
            yield definition.name.value, "", [*(definition.directives or ())]
            for field in definition.fields or ():
                yield definition.name.value, field.name.value, [*(field.directives or ())]


async def test_introspected_descriptions_contain_all_requirements(ada: GraphQLClient) -> None:
    missing, count = [], 0
    described: dict[str, Any] = {}
    for type_name, field_name, directives in directives_by_coordinate():
        words = [
            print_ast(argument.value)
            for directive in directives
            if directive.name.value in ("auth", "cost")
            for argument in directive.arguments or ()
            if print_ast(argument.value) not in NO_TEXT.get(argument.name.value, ())
        ]
        if not words:
            continue
        if type_name not in described:
            described[type_name] = (await ada(INTROSPECTION, type=type_name))["__type"]
        kind = described[type_name]
        members = [*(kind["fields"] or ()), *(kind["inputFields"] or ()), {**kind, "name": ""}]
        (text,) = [member["description"] for member in members if member["name"] == field_name]
        count += 1
        if any(word not in text for word in words if word != "true"):
            missing.append((type_name, field_name, words, text))
    assert count > 100
    assert not missing
