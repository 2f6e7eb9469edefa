"""The schema, printed and parsed again, as clients see it."""

from graphql import build_schema

from graph.schema import schema

TEXT = schema.as_str()
SDL = build_schema(TEXT)
