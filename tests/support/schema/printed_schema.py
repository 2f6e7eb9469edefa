"""The schema as it is printed and read again: clients know no other."""

from graphql import build_schema

from graph.schema import schema

TEXT = schema.as_str()
SDL = build_schema(TEXT)
