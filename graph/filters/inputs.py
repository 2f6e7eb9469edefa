"""Inputs of filters and their conversion to the stored form."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import MessageSelection
from graph.notifications.references import WebhookRef
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput, RestrictionsInput
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_user_or_viewer,
    mailbox_selector_from_ref,
    value_or_none,
)
from graph.types.scalars import ByteSize, validate_custom_data
from mail.filters.filter_compiler import MAX_DEPTH
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.filters.loaders import FilterListConditions
from resolvers.filters.validation import MAX_COPIES

UNKNOWN_USER_ID = 0
FLAG_ACTIONS = {"seen": "seen", "flag": "flag", "delete": "delete", "spam": "spam", "stop": "stop"}
LIST_ACTIONS = {
    "forward_to": "forwardTo", "keywords": "keywords", "remove_keywords": "removeKeywords",
}  # fmt: skip
SIMPLE_TESTS = {
    "from_": "from", "to": "to", "subject": "subject", "list_id": "listId", "text": "text",
    "has_attachment": "hasAttachment", "larger": "larger", "smaller": "smaller", "query": "query",
}  # fmt: skip


@strawberry.input(one_of=True, description="Reference to one filter.")
class FilterRef(ObjectRef):
    pass


@strawberry.input(description="Test of one header field.")
class HeaderTestInput:
    key: str = attribute_field(
        "Name of the header field without the colon, at most 128 characters."
    )
    value: str | None = attribute_field(
        "Text that the value contains, ignoring case. Null: the field only has to exist.",
        default=UNSET,
    )


@strawberry.input(
    description="Test of a text with a POSIX extended regular expression, ignoring case."
)
class RegexTestInput:
    key: str | None = attribute_field(
        "Name of the header field. Null: the text parts of the body are tested.", default=UNSET
    )
    pattern: str = attribute_field(
        "Regular expression of 1 to 200 characters. The test fails if it takes too many steps."
    )


@strawberry.input(
    description="Tests of a filter, at most 100 including groups and their tests. A message "
    "matches if all tests hold; without tests every message matches. Each text has 1 to 255 "
    "characters and matches a part of the value, ignoring case. Runs of white space count as "
    "one space. In an update, null removes a test."
)
class FilterQueryInput(RestrictionsInput):
    restriction_fields = frozenset({"all", "any", "not_"})
    from_: str | None = attribute_field(
        "Text that the header field From or Sender contains.", name="from", default=UNSET
    )
    to: str | None = attribute_field("Text that the header field To or Cc contains.", default=UNSET)
    subject: str | None = attribute_field("Text that the subject contains.", default=UNSET)
    list_id: str | None = attribute_field(
        "Text that the header field List-Id (RFC 2919) contains.", default=UNSET
    )
    text: str | None = attribute_field(
        "Text that a text part of the body contains. HTML is tested without its tags.",
        default=UNSET,
    )
    has_attachment: bool | None = attribute_field(
        "True matches messages with an attachment, false messages without one.", default=UNSET
    )
    larger: ByteSize | None = attribute_field(
        "Matches messages that are larger than this size, at least 1 byte.", default=UNSET
    )
    smaller: ByteSize | None = attribute_field(
        "Matches messages that are smaller than this size, at least 1 byte.", default=UNSET
    )
    header: HeaderTestInput | None = attribute_field(
        "Test of any other header field.", default=UNSET
    )
    regex: RegexTestInput | None = attribute_field(
        "Test of a header field or of the body with a regular expression.", default=UNSET
    )
    query: str | None = attribute_field(
        "Search text in the language of `messages(query:)`, such as `from:ann (subject:bill OR "
        "larger:5M)`. A word matches a part of Subject, From, To, Cc or the body. Terms that are "
        "not known at delivery, such as `mailbox:`, `keyword:` or `is:seen`, are an error.",
        default=UNSET,
    )
    all: list["FilterQueryInput"] | None = attribute_field(
        "Queries that must all match.", default=UNSET
    )
    any: list["FilterQueryInput"] | None = attribute_field(
        "Queries of which at least one must match.", default=UNSET
    )
    not_: list["FilterQueryInput"] | None = attribute_field(
        "Queries of which none may match.", name="not", default=UNSET
    )

    def to_stored_query(self, error_path: Sequence[str], depth: int = 0) -> dict[str, Any]:
        """Return the tests in their stored form.

        Absent fields are left out; null removes a test. Raises Invalid if the groups are nested too
        deep.
        """
        if depth > MAX_DEPTH:
            message = f"Groups (all, any, not) are nested at most {MAX_DEPTH} levels deep"
            raise InvalidInput(message, constraint=ValidationConstraint.DEPTH, path=error_path)
        tests = {
            stored_name: value
            for name, stored_name in SIMPLE_TESTS.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.header is not UNSET:
            header = self.header
            tests["header"] = header and {"key": header.key, "value": value_or_none(header.value)}
        if self.regex is not UNSET:
            regex = self.regex
            tests["regex"] = regex and {"key": value_or_none(regex.key), "pattern": regex.pattern}
        for stored_name, queries in (("all", self.all), ("any", self.any), ("not", self.not_)):
            if queries is not UNSET:
                tests[stored_name] = [
                    header.to_stored_query(error_path, depth + 1) for header in queries or ()
                ]
        return tests


@strawberry.input(
    description="Reply of a filter to the sender of a message. Text, HTML or both are required."
)
class FilterReplyInput:
    subject: str | None = attribute_field(
        "Subject of the reply, at most 512 bytes. Default: the subject of the original message.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Body of the reply as plain text, at most 16 KiB.", default=UNSET
    )
    html: str | None = attribute_field("Body of the reply as HTML, at most 16 KiB.", default=UNSET)


@strawberry.input(
    description="Actions of a filter on a matching message. An absent action leaves the decision "
    "to other "
    "filters. In an update, null removes an action."
)
class FilterActionInput:
    seen: bool | None = attribute_field(
        r"True sets the flag \Seen, false clears it.", default=UNSET
    )
    flag: bool | None = attribute_field(
        r"True sets the flag \Flagged, false clears it.", default=UNSET
    )
    delete: bool | None = attribute_field(
        "Discards the message instead of storing it.", default=UNSET
    )
    spam: bool | None = attribute_field(
        "True stores the message in Junk. False keeps it out of Junk, whatever its spam score.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox that the message is stored in.", default=UNSET
    )
    copy_to: list[MailboxRef] | None = attribute_field(
        "Mailboxes that get an additional copy, at most 10. Each copy counts against the quota.",
        default=UNSET,
    )
    forward_to: list[str] | None = attribute_field(
        "Addresses, `smtp://` or `smtps://` relays, and `http://` or `https://` URLs that get a "
        "copy, at most 4. A relay given with the password `***` keeps its stored password.",
        default=UNSET,
    )
    keywords: list[str] | None = attribute_field(
        "Keywords that are added to the message, at most 32.", default=UNSET
    )
    remove_keywords: list[str] | None = attribute_field(
        "Keywords that the message does not get, even if another filter or a script adds them, "
        "at most 32.",
        default=UNSET,
    )
    reply: FilterReplyInput | None = attribute_field(
        "Reply to the sender, sent at most once in the interval of the setting "
        "`autoreply.interval`.",
        default=UNSET,
    )
    webhook: WebhookRef | None = attribute_field(
        "Webhook that is called. It must belong to the owner of the filter.", default=UNSET
    )
    stop: bool | None = attribute_field("Runs no filter after this one.", default=UNSET)

    def to_stored_action(self, *error_path: str) -> dict[str, Any]:
        """Return the actions in their stored form.

        Absent fields are left out; null removes an action. `error_path` is the path of the input,
        for errors. Raises Invalid if an ID is not valid or there are too many mailboxes.
        """
        actions: dict[str, Any] = {
            stored_name: value
            for name, stored_name in {**FLAG_ACTIONS, **LIST_ACTIONS}.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.mailbox is not UNSET:
            actions["mailbox"] = self.mailbox and mailbox_selector_from_ref(
                self.mailbox, path=[*error_path, "mailbox"]
            )
        if self.copy_to is not UNSET:
            mailboxes = self.copy_to or ()
            if len(mailboxes) > MAX_COPIES:
                message = f"at most {MAX_COPIES} mailboxes"
                raise InvalidInput(
                    message, constraint=ValidationConstraint.MAX, path=[*error_path, "copyTo"]
                )
            actions["copyTo"] = [
                mailbox_selector_from_ref(one, path=[*error_path, "copyTo"], index=index)
                for index, one in enumerate(mailboxes)
            ]
        if self.reply is not UNSET:
            one = self.reply
            actions["reply"] = one and {
                "subject": value_or_none(one.subject),
                "text": value_or_none(one.text),
                "html": value_or_none(one.html),
            }
        if self.webhook is not UNSET:
            ref = self.webhook
            actions["webhook"] = ref and id_from_ref(ref, *error_path, "webhook")
        return actions


@strawberry.input(description="Input of filterCreate.")
class FilterCreateInput(Options):
    user: UserRef | None = attribute_field(
        "Owner of the filter. Default: the signed-in user.", default=UNSET
    )
    name: str | None = attribute_field(
        "Name of the filter, at most 255 characters. Default: empty.", default=UNSET
    )
    query: FilterQueryInput = attribute_field("Tests that a message must pass.")
    action: FilterActionInput = attribute_field("Actions on a matching message, at least one.")
    active: bool | None = attribute_field("Runs the filter on received messages.", default=True)
    position: int | None = attribute_field(
        "Position in the run order, a 32-bit integer. The lowest runs first, equal ones by age. "
        "Default: after the last filter.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field("JSON object with data of the client.", default=UNSET)

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _column_values(self, ())


@strawberry.input(description="New values of filters. An absent field leaves the value unchanged.")
class FilterPatch:
    name: str | None = attribute_field(
        "Name of the filter, at most 255 characters. Null: empty.", default=UNSET
    )
    query: FilterQueryInput | None = attribute_field(
        "Tests to set, or to remove with null. Other tests are unchanged.", default=UNSET
    )
    action: FilterActionInput | None = attribute_field(
        "Actions to set, or to remove with null. Other actions are unchanged.", default=UNSET
    )
    active: bool | None = attribute_field("Runs the filter on received messages.", default=UNSET)
    position: int | None = attribute_field(
        "Position in the run order, a 32-bit integer. The lowest runs first, equal ones by age.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field("JSON object with data of the client.", default=UNSET)

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _column_values(self, ("set",))


def _column_values(
    filter_input: FilterCreateInput | FilterPatch, error_path: Sequence[str]
) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values: dict[str, Any] = {
        name: value
        for name in ("name", "active", "position")
        if (value := getattr(filter_input, name)) is not UNSET
    }
    if filter_input.query:
        values["query"] = filter_input.query.to_stored_query([*error_path, "query"])
    if filter_input.action:
        values["action"] = filter_input.action.to_stored_action(*error_path, "action")
    if filter_input.metadata is not UNSET:
        values["public_metadata"] = validate_custom_data(filter_input.metadata, "metadata")
    return values


@strawberry.input(description="Input of filterUpdate.")
class FilterUpdateInput(Options):
    filters: list[FilterRef] = attribute_field("Filters to change.")
    set: FilterPatch = attribute_field("New values for all of the filters.")


@strawberry.input(description="Input of filterDelete.")
class FilterDeleteInput(Options):
    filters: list[FilterRef] = attribute_field("Filters to delete.")


@strawberry.input(description="Input of filterApply.")
class FilterApplyInput(Options):
    filters: list[FilterRef] = attribute_field(
        "Filters of the signed-in user, at most 100. Inactive ones run too."
    )
    select: MessageSelection = attribute_field("Messages of the signed-in user.")


@strawberry.input(description="Conditions for filters. All of them must hold.")
class FilterFilter(ConditionsInput):
    forward: str | None = attribute_field(
        "Filters with a target of `forwardTo` that contains this text.", default=UNSET
    )
    user: UserRef | None = attribute_field("Filters of this user.", default=UNSET)

    async def resolve_conditions(self, info: Info) -> FilterListConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no filter.
        """
        user = await load_user_or_viewer(info, self.user) if self.user else None
        return FilterListConditions(
            target_part=self.forward or None,
            user_id=(user.id if user else UNKNOWN_USER_ID) if self.user else None,
        )
