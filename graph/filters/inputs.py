"""Inputs of filters and their conversion to the stored form."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import MessageSelection
from graph.types import global_ids
from graph.types.errors import Options, leaf
from graph.types.fields import Info
from graph.types.input_conditions import Conditions, Restrictions
from graph.types.references import MailboxRef, UserRef, named, plain, user_of
from graph.types.scalars import BigInt, free_data
from mail.filters.filter_compiler import NESTED
from models.errors import Invalid
from resolvers.filters.loaders import FilterWhere
from resolvers.filters.validation import COPIES

NOBODY = 0
FLAGS = {"seen": "seen", "flag": "flag", "delete": "delete", "spam": "spam", "stop": "stop"}
LISTS = {"targets": "targets", "labels": "labels", "remove_labels": "removeLabels"}
TESTS = {
    "from_": "from", "to": "to", "subject": "subject", "list_id": "listId", "text": "text",
    "has_attachment": "hasAttachment", "size": "size", "query": "query",
}  # fmt: skip


@strawberry.input(description="Test of one header.")
class HeaderTestInput:
    key: str = leaf("Its name.")
    value: str | None = leaf("Part of its value; null = it is there.", default=UNSET)


@strawberry.input(description="Test by an expression (POSIX extended), in any case.")
class RegexTestInput:
    key: str | None = leaf("Name of a header; null = the texts of the body.", default=UNSET)
    pattern: str = leaf(
        "1 to 200 characters. One that takes too many steps on a message does not hold."
    )


@strawberry.input(
    description="All given tests must hold; without any all mail fits. Texts are partial matches "
    "of 1 to 255 characters, in any case, each white space like one blank; null = no such test."
)
class FilterQueryInput(Restrictions):
    restrictions = frozenset({"all", "any", "not_"})
    from_: str | None = leaf("In From or Sender.", name="from", default=UNSET)
    to: str | None = leaf("In To or Cc.", default=UNSET)
    subject: str | None = leaf("In Subject.", default=UNSET)
    list_id: str | None = leaf("In List-Id.", default=UNSET)
    text: str | None = leaf("In a text of the body, of HTML without its tags.", default=UNSET)
    has_attachment: bool | None = leaf("With or without files.", default=UNSET)
    size: BigInt | None = leaf(
        "Larger than so many bytes; below 0, smaller than its absolute value.", default=UNSET
    )
    header: HeaderTestInput | None = leaf("Another header.", default=UNSET)
    regex: RegexTestInput | None = leaf("A header, or the body.", default=UNSET)
    query: str | None = leaf(
        "A text in the language of `messages(query:)`, such as `from:ann (subject:bill OR "
        "larger:5M)`. Words are partial matches in Subject, From, To, Cc or the body. Terms about "
        "what is not known at delivery, such as mailbox:, keyword: or is:seen, are an error.",
        default=UNSET,
    )
    all: list["FilterQueryInput"] | None = leaf("Each of these holds, too.", default=UNSET)
    any: list["FilterQueryInput"] | None = leaf("At least one of these holds.", default=UNSET)
    not_: list["FilterQueryInput"] | None = leaf("None of these holds.", name="not", default=UNSET)

    def said(self, path: Sequence[str], depth: int = 0) -> dict[str, Any]:
        """Return the tests in their stored form.

        Absent fields are left out; null removes a test. Raises Invalid if the groups are nested too
        deep.
        """
        if depth > NESTED:
            message = f"all, any and not go {NESTED} levels deep"
            raise Invalid(message, constraint="depth", path=path)
        tests = {
            stored_name: value
            for name, stored_name in TESTS.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.header is not UNSET:
            header = self.header
            tests["header"] = header and {"key": header.key, "value": plain(header.value)}
        if self.regex is not UNSET:
            regex = self.regex
            tests["regex"] = regex and {"key": plain(regex.key), "pattern": regex.pattern}
        for stored_name, queries in (("all", self.all), ("any", self.any), ("not", self.not_)):
            if queries is not UNSET:
                tests[stored_name] = [header.said(path, depth + 1) for header in queries or ()]
        return tests


@strawberry.input(description="An answer: text, HTML or both.")
class FilterReplyInput:
    subject: str = leaf('At most 512 bytes; "" = that of the original.', default="")
    text: str | None = leaf("Plain text, at most 16 KiB.", default=UNSET)
    html: str | None = leaf("HTML, at most 16 KiB.", default=UNSET)


@strawberry.input(description="What happens to a match; null = nothing is said of it.")
class FilterActionInput:
    seen: bool | None = leaf("Mark read.", default=UNSET)
    flag: bool | None = leaf("Flag.", default=UNSET)
    delete: bool | None = leaf("Do not store.", default=UNSET)
    spam: bool | None = leaf("To Junk; false = never Junk.", default=UNSET)
    mailbox: MailboxRef | None = leaf("Store there.", default=UNSET)
    copy_to: list[MailboxRef] | None = leaf(
        "Store there as well, counted against the quota each time; at most 10.", default=UNSET
    )
    targets: list[str] | None = leaf(
        "Copies go to: address, smtp:// or smtps:// relay, http:// or https:// URL; at most 4. "
        "A relay whose password is shown as *** stays as it is.",
        default=UNSET,
    )
    labels: list[str] | None = leaf("Keywords to set, at most 32.", default=UNSET)
    remove_labels: list[str] | None = leaf(
        "Keywords not to set, whatever another filter says.", default=UNSET
    )
    reply: FilterReplyInput | None = leaf(
        "Answer the sender, once in setting autoreply.interval.", default=UNSET
    )
    webhook: strawberry.ID | None = leaf("Called: one of the user's own.", default=UNSET)
    stop: bool | None = leaf("No further filters.", default=UNSET)

    def said(self, *at: str) -> dict[str, Any]:
        """Return the actions in their stored form.

        Absent fields are left out; null removes an action. `error_path` is the path of the input,
        for errors. Raises Invalid if an ID is not valid or there are too many mailboxes.
        """
        actions: dict[str, Any] = {
            stored_name: value
            for name, stored_name in {**FLAGS, **LISTS}.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.mailbox is not UNSET:
            actions["mailbox"] = self.mailbox and named(self.mailbox)
        if self.copy_to is not UNSET:
            mailboxes = self.copy_to or ()
            if len(mailboxes) > COPIES:
                message = f"at most {COPIES} mailboxes"
                raise Invalid(message, constraint="max", path=[*at, "copyTo"])
            actions["copyTo"] = [
                named(one, path="copyTo", index=index) for index, one in enumerate(mailboxes)
            ]
        if self.reply is not UNSET:
            one = self.reply
            actions["reply"] = one and {
                "subject": one.subject, "text": plain(one.text), "html": plain(one.html)
            }  # fmt: skip
        if self.webhook is not UNSET:
            webhook_id = self.webhook
            actions["webhook"] = webhook_id and global_ids.decode(
                "Webhook", webhook_id, path="webhook"
            )
        return actions


@strawberry.input(description="Input of filterCreate.")
class FilterCreateInput(Options):
    user: UserRef | None = leaf("Whose; default: the viewer's.", default=UNSET)
    name: str | None = leaf("At most 255 characters.", default=UNSET)
    query: FilterQueryInput = leaf("Which mail.")
    action: FilterActionInput = leaf("What happens to it: at least one thing.")
    active: bool | None = leaf("In force.", default=True)
    order: int | None = leaf(
        "Place in the sequence; default: behind the last. Gaps are fine, and of equal ones the "
        "oldest is first.",
        default=UNSET,
    )
    meta_data: JSON | None = leaf("Free data of the application, an object.", default=UNSET)

    def values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _values(self, ())


@strawberry.input(description="What to change; absent = unchanged.")
class FilterPatch:
    name: str | None = leaf("At most 255 characters; null = none.", default=UNSET)
    query: FilterQueryInput | None = leaf(
        "Tests to set, or with null to take out; all others stay.", default=UNSET
    )
    action: FilterActionInput | None = leaf(
        "What to set, or with null to take out; all else stays.", default=UNSET
    )
    active: bool | None = leaf("In force.", default=UNSET)
    order: int | None = leaf("Place in the sequence.", default=UNSET)
    meta_data: JSON | None = leaf("Free data of the application, an object.", default=UNSET)

    def values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises Invalid."""
        return _values(self, ("set",))


def _values(given: FilterCreateInput | FilterPatch, at: Sequence[str]) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values: dict[str, Any] = {
        name: value
        for name in ("name", "active", "order")
        if (value := getattr(given, name)) is not UNSET
    }
    if given.query:
        values["query"] = given.query.said([*at, "query"])
    if given.action:
        values["action"] = given.action.said(*at, "action")
    if given.meta_data is not UNSET:
        values["meta_data"] = free_data(given.meta_data, "metaData")
    return values


@strawberry.input(description="Input of filterUpdate.")
class FilterUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    set: FilterPatch = leaf("What to change.")


@strawberry.input(description="Input of filterApply.")
class FilterApplyInput(Options):
    ids: list[strawberry.ID] = leaf("The viewer's own, at most 100; also such as are not active.")
    select: MessageSelection = leaf("Which of the viewer's messages.")


@strawberry.input(description="Which filters.")
class FilterListFilter(Conditions):
    forward: str | None = leaf("Partial match of a forwarding target.", default=UNSET)
    user: UserRef | None = leaf("Of this user.", default=UNSET)

    async def where(self, info: Info) -> FilterWhere:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no filter.
        """
        user = await user_of(info, self.user) if self.user else None
        return FilterWhere(
            forward=self.forward or None,
            user_id=(user.id if user else NOBODY) if self.user else None,
        )
