"""The state of a running import and its result."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mail.text.storable_text import make_storable
from models.mailboxes.tables import SpecialUse
from models.store.columns import ColumnRow
from resolvers.context import Context

MAX_REPORTED_ITEMS = 200  # skipped items listed in the result
MAX_ITEM_NAME_LENGTH = 300  # characters
NO_MESSAGE_REASON = "The archive has no message that can be imported."


@dataclass(slots=True)
class ImportOutcome:
    """The result of an import over all its runs. Its fields are stored in the checkpoint."""

    stored: int = 0
    known: int = 0  # already in the mailbox
    skipped: list[list[str]] = field(default_factory=list)  # item and reason
    unlisted: int = 0  # skipped items that are not listed

    def add_skipped(self, item: str, reason: str) -> None:
        """Add an item that is not imported, with the reason."""
        if len(self.skipped) < MAX_REPORTED_ITEMS:
            self.skipped.append([make_storable(item[:MAX_ITEM_NAME_LENGTH]), reason])
        else:
            self.unlisted += 1

    def no_message_reason_or_none(self) -> str | None:
        """The reason why the source has no usable message, with that of the first skipped item.

        None if a message was stored, or the account had it already.
        """
        if self.stored or self.known:
            return None
        if not self.skipped:
            return NO_MESSAGE_REASON
        name, reason = self.skipped[0]
        return f"{NO_MESSAGE_REASON} {name}: {reason}"


@dataclass(slots=True)
class RunningImport:
    """A running import into one account."""

    ctx: Context  # its viewer is the user of the account
    user: ColumnRow  # id, tenant_id
    target_path: str | None  # one mailbox for all; None: the paths of the source
    first_new_id: int  # messages with lower IDs existed before the import
    mailbox_ids: dict[str, int]  # mailboxes by path
    outcome: ImportOutcome
    paths_by_special_use: Mapping[SpecialUse, str] = field(default_factory=dict)
    skips_known: bool = True
    subscribes: bool = True  # to new mailboxes
    digests_by_mailbox: dict[int, Counter[bytes]] = field(default_factory=dict)  # shortened digests
