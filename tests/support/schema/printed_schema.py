"""The schema, printed and parsed again, as clients see it."""

from graphql import build_schema

from graph.schema import schema

SCHEMA_TEXT = schema.as_str()
SDL = build_schema(SCHEMA_TEXT)
