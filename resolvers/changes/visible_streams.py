"""The streams that a viewer can follow, and which events of them are visible."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from models.auth.security_log import SECURITY_EVENT_TYPES
from models.events.event_types import USER_EVENT_TYPES, EventType
from models.events.journal import JournalEvent, StreamPositions
from models.mailboxes.shares import ShareRight, decode_rights
from models.store.columns import ColumnRow
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights

SharesByOwner = Mapping[int, Mapping[int, ColumnRow]]  # by owner id and mailbox id
CREDENTIAL_EVENT_TYPES = SECURITY_EVENT_TYPES | USER_EVENT_TYPES


class FollowedStreams(Protocol):
    """Streams of the journal, and which of their events a follower can see now."""

    @property
    def stream_ids(self) -> list[int]:
        """All stream ids."""

    @property
    def reported_stream_ids(self) -> Collection[int]:
        """Ids of the streams whose progress is reported, even if no event is visible."""

    def includes_position(self, position: StreamPositions) -> bool:
        """True if the position belongs to these streams."""

    def positions_in_streams(self, position: StreamPositions) -> dict[int, int]:
        """Return the positions in these streams, and no others."""

    def visible_event_or_none(self, event: JournalEvent) -> JournalEvent | None:
        """Return the event as the viewer sees it, or None if it is not visible."""

    def needs_reload(self, events: Iterable[JournalEvent]) -> bool:
        """True if the streams must be loaded again before these events are delivered."""

    def may_end_credential(self, events: Iterable[JournalEvent]) -> bool:
        """True if these events can have ended the viewer's credential."""


SelectStreams = Callable[[Context], Awaitable[FollowedStreams]]


@dataclass(frozen=True, slots=True)
class ViewerStreams:
    """The viewer's own stream, and those of the owners of shared mailboxes."""

    viewer_id: int
    shares_by_owner: SharesByOwner = field(default_factory=dict)

    @property
    def stream_ids(self) -> list[int]:
        """All stream ids."""
        return [self.viewer_id, *self.shares_by_owner]

    @property
    def reported_stream_ids(self) -> Collection[int]:
        """The own stream only: progress of other users without visible event is not reported."""
        return (self.viewer_id,)

    def includes_position(self, position: StreamPositions) -> bool:
        """True if the position contains the own stream."""
        return self.viewer_id in position

    def needs_reload(self, events: Iterable[JournalEvent]) -> bool:
        """True if a mailbox is shared with the viewer, or was just shared."""
        return bool(self.shares_by_owner) or any(map(is_share_change, events))

    def may_end_credential(self, events: Iterable[JournalEvent]) -> bool:
        """True if the events are about the viewer's account or credentials."""
        return any(
            event.stream_id == self.viewer_id and event.type in CREDENTIAL_EVENT_TYPES
            for event in events
        )

    def positions_in_streams(self, position: StreamPositions) -> dict[int, int]:
        """Return the positions in these streams, and no others.

        A stream that the position has not is read from the time its owner began to share.
        """
        positions = {self.viewer_id: position[self.viewer_id]} if self.viewer_id in position else {}
        for owner, shares_by_mailbox in self.shares_by_owner.items():
            since = min(share.since for share in shares_by_mailbox.values())
            positions[owner] = position.get(owner, since)
        return positions

    def visible_event_or_none(self, event: JournalEvent) -> JournalEvent | None:
        """Return the event as the viewer sees it, or None if it is not visible.

        Of other users these are events in shared mailboxes since they were shared. A
        message moved to another mailbox is deleted, one moved from another is added. So is a
        draft that another version replaces in another mailbox. The origin is removed.
        """
        if event.stream_id == self.viewer_id:
            return event
        event = replace(event, origin=None)
        if "fromMailbox" in event.facts:
            return self._visible_move(event)
        if event.type.startswith("MAILBOX_"):
            is_visible = self._has_right_granted_before_event(
                event, event.object_id, ShareRight.LOOKUP
            )
        else:
            mailbox_id = event.facts.get("mailbox") if event.type.startswith("MESSAGE_") else None
            is_visible = self._has_right_granted_before_event(event, mailbox_id, ShareRight.READ)
        return event if is_visible else None

    def _visible_move(self, event: JournalEvent) -> JournalEvent | None:
        facts = event.facts
        sees_target = self._has_right_granted_before_event(event, facts["mailbox"], ShareRight.READ)
        sees_source = self._has_right_granted_before_event(
            event, facts["fromMailbox"], ShareRight.READ
        )
        visible_facts: dict[str, Any] = {"modseq": facts["modseq"]}
        if sees_target and not sees_source:
            visible_facts |= {name: facts[name] for name in ("mailbox", "uid", "flags")}
            return replace(event, type=EventType.MESSAGE_ADDED, facts=visible_facts)
        if sees_source and not sees_target:
            visible_facts |= {"mailbox": facts["fromMailbox"], "uid": facts["fromUid"]}
            return replace(event, type=EventType.MESSAGE_PURGED, facts=visible_facts)
        return event if sees_target else None

    def _has_right_granted_before_event(
        self, event: JournalEvent, mailbox_id: int | None, right: ShareRight
    ) -> bool:
        share = self.shares_by_owner.get(event.stream_id, {}).get(mailbox_id or 0)
        if share is None or right not in decode_rights(share.rights):
            return False
        return bool(event.positions[event.stream_id] > share.since)


async def load_viewer_streams_and_note_sharing(ctx: Context) -> ViewerStreams:
    """Load the streams that the viewer can follow now.

    Also notes in the viewer whether mailboxes are shared with them.
    """
    viewer_id, shares_by_owner = require_user_id(ctx), defaultdict[int, dict[int, ColumnRow]](dict)
    for row in await mailbox_rights.load_shares_with_viewer(ctx):
        shares_by_owner[row.owner_id][row.mailbox_id] = row
    if shares_by_owner:
        ctx.viewer.share_visibility.has_shared_mailboxes = True
    return ViewerStreams(viewer_id, dict(shares_by_owner))


def is_share_change(event: JournalEvent) -> bool:
    """True if the event is about a mailbox that was shared with the user, or no longer is."""
    return "owner" in event.facts
