"""GraphQL types of the tests of filters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import strawberry

from graph.messages.mime_parts import HeaderField
from graph.types.errors import attribute_field
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.scalars import ByteSize
from mail.mime import DecodedField


def _json_field(key: str, default: Any = None) -> DerivedField:
    """Return a field that shows a member of the stored JSON."""
    return DerivedField((), lambda query: query.get(key, default))


def _header_field_of_filter_query(query: Mapping[str, Any]) -> HeaderField | None:
    """Return the header test of a stored query as a header field; None if it has none."""
    header_test = query.get("header")
    if header_test is None:
        return None
    value = header_test["value"] or ""
    return HeaderField.from_row(
        DecodedField(header_test["key"], value, f"{header_test['key']}: {value}".rstrip())
    )


@strawberry.type(
    description="Test of a text with a POSIX extended regular expression, ignoring case."
)
class RegexTest(View):
    name: str | None = attribute_field(
        "Name of the tested header field. Null: the text parts of the body are tested."
    )
    pattern: str = attribute_field("Regular expression.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": _json_field("key"),
        "pattern": _json_field("pattern"),
    }


@strawberry.type(
    description="Tests of a filter. A message matches if it passes all of them. A field that is "
    "null or an empty list is no test."
)
class FilterQuery(View):
    from_: str | None = attribute_field(
        "Text that the header field From or Sender contains, ignoring case.", name="from"
    )
    to_or_cc: str | None = attribute_field("Text that To or Cc contains, ignoring case.")
    subject: str | None = attribute_field("Text that the subject contains, ignoring case.")
    list_id: str | None = attribute_field(
        "Text that the header field List-Id (RFC 2919) contains, ignoring case."
    )
    text: str | None = attribute_field("Text that a text part of the body contains, ignoring case.")
    has_attachment: bool | None = attribute_field(
        "True: the message must have an attachment. False: it must have none."
    )
    larger: ByteSize | None = attribute_field(
        "Size in bytes that the message must exceed. Null: there is no such test."
    )
    smaller: ByteSize | None = attribute_field(
        "Size in bytes that the message must stay below. Null: there is no such test."
    )
    header: HeaderField | None = attribute_field(
        "Test of one header field: its name and the text that its value contains. The text "
        "is empty if the field only has to exist."
    )
    regex: RegexTest | None = attribute_field(
        "Test of a header field or of the body with a regular expression."
    )
    query: str | None = attribute_field(
        "Search text in the language of `messages(query:)` that the message must match."
    )
    all: list["FilterQuery"] = attribute_field(
        "Groups of tests. A message must pass all groups. Empty: no group must be passed. A filter "
        "has at most 100 tests and groups together."
    )
    any: list["FilterQuery"] = attribute_field(
        "Queries of which at least one must match. Empty: there is no such test. A query has at "
        "most 100 tests."
    )
    not_: list["FilterQuery"] = attribute_field(
        "Queries of which none may match. Empty: there is no such test. A query has at most 100 "
        "tests.",
        name="not",
    )


FilterQuery.derived_fields = {
    "from_": _json_field("from"),
    "to_or_cc": _json_field("to"),
    "subject": _json_field("subject"),
    "list_id": _json_field("listId"),
    "text": _json_field("text"),
    "has_attachment": _json_field("hasAttachment"),
    "larger": _json_field("larger"),
    "smaller": _json_field("smaller"),
    "header": DerivedField((), _header_field_of_filter_query),
    "regex": NestedViewField((), lambda query: query.get("regex"), RegexTest),
    "query": DerivedField((), lambda query: query["query"]["text"] if query.get("query") else None),
    "all": NestedViewField((), lambda query: query.get("all", ()), FilterQuery, is_list=True),
    "any": NestedViewField((), lambda query: query.get("any", ()), FilterQuery, is_list=True),
    "not_": NestedViewField((), lambda query: query.get("not", ()), FilterQuery, is_list=True),
}
