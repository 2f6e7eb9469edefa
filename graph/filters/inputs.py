"""Inputs of filters and their conversion to the stored form."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import MessageSelection
from graph.types import global_ids
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput, RestrictionsInput
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_user_or_viewer,
    mailbox_selector_from_ref,
    value_or_none,
)
from graph.types.scalars import BigInt, validate_custom_data
from mail.filters.filter_compiler import MAX_DEPTH
from models.errors import InvalidInput
from resolvers.filters.loaders import FilterListConditions
from resolvers.filters.validation import MAX_COPIES

UNKNOWN_USER_ID = 0
FLAG_ACTIONS = {"seen": "seen", "flag": "flag", "delete": "delete", "spam": "spam", "stop": "stop"}
LIST_ACTIONS = {"targets": "targets", "labels": "labels", "remove_labels": "removeLabels"}
SIMPLE_TESTS = {
    "from_": "from", "to": "to", "subject": "subject", "list_id": "listId", "text": "text",
    "has_attachment": "hasAttachment", "size": "size", "query": "query",
}  # fmt: skip


@strawberry.input(description="Test of one header.")
class HeaderTestInput:
    key: str = attribute_field("Its name.")
    value: str | None = attribute_field("Part of its value; null = it is there.", default=UNSET)


@strawberry.input(description="Test by an expression (POSIX extended), in any case.")
class RegexTestInput:
    key: str | None = attribute_field(
        "Name of a header; null = the texts of the body.", default=UNSET
    )
    pattern: str = attribute_field(
        "1 to 200 characters. One that takes too many steps on a message does not hold."
    )


@strawberry.input(
    description="All given tests must hold; without any all mail fits. Texts are partial matches "
    "of 1 to 255 characters, in any case, each white space like one blank; null = no such test."
)
class FilterQueryInput(RestrictionsInput):
    restriction_fields = frozenset({"all", "any", "not_"})
    from_: str | None = attribute_field("In From or Sender.", name="from", default=UNSET)
    to: str | None = attribute_field("In To or Cc.", default=UNSET)
    subject: str | None = attribute_field("In Subject.", default=UNSET)
    list_id: str | None = attribute_field("In List-Id.", default=UNSET)
    text: str | None = attribute_field(
        "In a text of the body, of HTML without its tags.", default=UNSET
    )
    has_attachment: bool | None = attribute_field("With or without files.", default=UNSET)
    size: BigInt | None = attribute_field(
        "Larger than so many bytes; below 0, smaller than its absolute value.", default=UNSET
    )
    header: HeaderTestInput | None = attribute_field("Another header.", default=UNSET)
    regex: RegexTestInput | None = attribute_field("A header, or the body.", default=UNSET)
    query: str | None = attribute_field(
        "A text in the language of `messages(query:)`, such as `from:ann (subject:bill OR "
        "larger:5M)`. Words are partial matches in Subject, From, To, Cc or the body. Terms about "
        "what is not known at delivery, such as mailbox:, keyword: or is:seen, are an error.",
        default=UNSET,
    )
    all: list["FilterQueryInput"] | None = attribute_field(
        "Each of these holds, too.", default=UNSET
    )
    any: list["FilterQueryInput"] | None = attribute_field(
        "At least one of these holds.", default=UNSET
    )
    not_: list["FilterQueryInput"] | None = attribute_field(
        "None of these holds.", name="not", default=UNSET
    )

    def to_stored_query(self, error_path: Sequence[str], depth: int = 0) -> dict[str, Any]:
        """Return the tests in their stored form.

        Absent fields are left out; null removes a test. Raises Invalid if the groups are nested too
        deep.
        """
        if depth > MAX_DEPTH:
            message = f"all, any and not go {MAX_DEPTH} levels deep"
            raise InvalidInput(message, constraint="depth", path=error_path)
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


@strawberry.input(description="An answer: text, HTML or both.")
class FilterReplyInput:
    subject: str = attribute_field('At most 512 bytes; "" = that of the original.', default="")
    text: str | None = attribute_field("Plain text, at most 16 KiB.", default=UNSET)
    html: str | None = attribute_field("HTML, at most 16 KiB.", default=UNSET)


@strawberry.input(description="What happens to a match; null = nothing is said of it.")
class FilterActionInput:
    seen: bool | None = attribute_field("Mark read.", default=UNSET)
    flag: bool | None = attribute_field("Flag.", default=UNSET)
    delete: bool | None = attribute_field("Do not store.", default=UNSET)
    spam: bool | None = attribute_field("To Junk; false = never Junk.", default=UNSET)
    mailbox: MailboxRef | None = attribute_field("Store there.", default=UNSET)
    copy_to: list[MailboxRef] | None = attribute_field(
        "Store there as well, counted against the quota each time; at most 10.", default=UNSET
    )
    targets: list[str] | None = attribute_field(
        "Copies go to: address, smtp:// or smtps:// relay, http:// or https:// URL; at most 4. "
        "A relay whose password is shown as *** stays as it is.",
        default=UNSET,
    )
    labels: list[str] | None = attribute_field("Keywords to set, at most 32.", default=UNSET)
    remove_labels: list[str] | None = attribute_field(
        "Keywords not to set, whatever another filter says.", default=UNSET
    )
    reply: FilterReplyInput | None = attribute_field(
        "Answer the sender, once in setting autoreply.interval.", default=UNSET
    )
    webhook: strawberry.ID | None = attribute_field("Called: one of the user's own.", default=UNSET)
    stop: bool | None = attribute_field("No further filters.", default=UNSET)

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
            actions["mailbox"] = self.mailbox and mailbox_selector_from_ref(self.mailbox)
        if self.copy_to is not UNSET:
            mailboxes = self.copy_to or ()
            if len(mailboxes) > MAX_COPIES:
                message = f"at most {MAX_COPIES} mailboxes"
                raise InvalidInput(message, constraint="max", path=[*error_path, "copyTo"])
            actions["copyTo"] = [
                mailbox_selector_from_ref(one, path="copyTo", index=index)
                for index, one in enumerate(mailboxes)
            ]
        if self.reply is not UNSET:
            one = self.reply
            actions["reply"] = one and {
                "subject": one.subject,
                "text": value_or_none(one.text),
                "html": value_or_none(one.html),
            }
        if self.webhook is not UNSET:
            webhook_id = self.webhook
            actions["webhook"] = webhook_id and global_ids.decode(
                "Webhook", webhook_id, path="webhook"
            )
        return actions


@strawberry.input(description="Input of filterCreate.")
class FilterCreateInput(Options):
    user: UserRef | None = attribute_field("Whose; default: the viewer's.", default=UNSET)
    name: str | None = attribute_field("At most 255 characters.", default=UNSET)
    query: FilterQueryInput = attribute_field("Which mail.")
    action: FilterActionInput = attribute_field("What happens to it: at least one thing.")
    active: bool | None = attribute_field("In force.", default=True)
    order: int | None = attribute_field(
        "Place in the sequence; default: behind the last. Gaps are fine, and of equal ones the "
        "oldest is first.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "Free data of the application, an object.", default=UNSET
    )

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _column_values(self, ())


@strawberry.input(description="What to change; absent = unchanged.")
class FilterPatch:
    name: str | None = attribute_field("At most 255 characters; null = none.", default=UNSET)
    query: FilterQueryInput | None = attribute_field(
        "Tests to set, or with null to take out; all others stay.", default=UNSET
    )
    action: FilterActionInput | None = attribute_field(
        "What to set, or with null to take out; all else stays.", default=UNSET
    )
    active: bool | None = attribute_field("In force.", default=UNSET)
    order: int | None = attribute_field("Place in the sequence.", default=UNSET)
    metadata: JSON | None = attribute_field(
        "Free data of the application, an object.", default=UNSET
    )

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _column_values(self, ("set",))


def _column_values(
    filter_input: FilterCreateInput | FilterPatch, error_path: Sequence[str]
) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values: dict[str, Any] = {
        name: value
        for name in ("name", "active", "order")
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
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    set: FilterPatch = attribute_field("What to change.")


@strawberry.input(description="Input of filterApply.")
class FilterApplyInput(Options):
    ids: list[strawberry.ID] = attribute_field(
        "The viewer's own, at most 100; also such as are not active."
    )
    select: MessageSelection = attribute_field("Which of the viewer's messages.")


@strawberry.input(description="Which filters.")
class FilterListFilter(ConditionsInput):
    forward: str | None = attribute_field("Partial match of a forwarding target.", default=UNSET)
    user: UserRef | None = attribute_field("Of this user.", default=UNSET)

    async def resolve_conditions(self, info: Info) -> FilterListConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no filter.
        """
        user = await load_user_or_viewer(info, self.user) if self.user else None
        return FilterListConditions(
            target_part=self.forward or None,
            user_id=(user.id if user else UNKNOWN_USER_ID) if self.user else None,
        )
