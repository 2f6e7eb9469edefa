"""The streams that a viewer can follow, and which events of them are visible."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from models.events.journal import ChangeKind, Event, Position
from models.mailboxes.shares import ShareRight, rights_of
from models.store.columns import Picked
from resolvers.access import own
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights

Shares = Mapping[int, Mapping[int, Picked]]  # by owner id and mailbox id
ENDING = frozenset({ChangeKind.SECURITY_EVENT, ChangeKind.USER_CHANGED})


class Heard(Protocol):
    """Streams of the journal, and which of their events a follower can see now."""

    @property
    def streams(self) -> list[int]:
        """All stream ids."""

    @property
    def open(self) -> Collection[int]:
        """Ids of the streams whose progress is reported, even if no event is visible."""

    def knows(self, at: Position) -> bool:
        """True if the position belongs to these streams."""

    def places(self, at: Position) -> dict[int, int]:
        """Return the positions in these streams, and no others."""

    def shown(self, event: Event) -> Event | None:
        """Return the event as the viewer sees it, or None if it is not visible."""

    def stale(self, events: Iterable[Event]) -> bool:
        """True if the streams must be loaded again before these events are delivered."""

    def ending(self, events: Iterable[Event]) -> bool:
        """True if these events can have ended the viewer's credential."""


Hear = Callable[[Context], Awaitable[Heard]]


@dataclass(frozen=True, slots=True)
class Hearing:
    """The viewer's own stream, and those of the owners of shared mailboxes."""

    mine: int
    shares: Shares = field(default_factory=dict)

    @property
    def streams(self) -> list[int]:
        """All stream ids."""
        return [self.mine, *self.shares]

    @property
    def open(self) -> Collection[int]:
        """The own stream only: progress of other users without visible event is not reported."""
        return (self.mine,)

    def knows(self, at: Position) -> bool:
        """True if the position contains the own stream."""
        return self.mine in at

    def stale(self, events: Iterable[Event]) -> bool:
        """True if a mailbox is shared with the viewer, or was just shared."""
        return bool(self.shares) or any(map(sharing, events))

    def ending(self, events: Iterable[Event]) -> bool:
        """True if the events are about the viewer's account or credentials."""
        return any(event.stream_id == self.mine and event.kind in ENDING for event in events)

    def places(self, at: Position) -> dict[int, int]:
        """Return the positions in these streams, and no others.

        A stream that the position has not is read from the time its owner began to share.
        """
        found = {self.mine: at[self.mine]} if self.mine in at else {}
        for owner, boxes in self.shares.items():
            since = min(share.since for share in boxes.values())
            found[owner] = at.get(owner, since)
        return found

    def shown(self, event: Event) -> Event | None:
        """Return the event as the viewer sees it, or None if it is not visible.

        Of other users these are events in shared mailboxes since they were shared. A
        message moved to another mailbox is deleted, one moved from another is added. The
        origin is removed.
        """
        if event.stream_id == self.mine:
            return event
        event = replace(event, origin=None)
        if event.kind is ChangeKind.MESSAGE_MOVED:
            return self._moved(event)
        if event.kind.startswith("MAILBOX_"):
            seen = self._may(event, event.object_id, ShareRight.LOOKUP)
        else:
            box = event.facts.get("mailbox") if event.kind.startswith("MESSAGE_") else None
            seen = self._may(event, box, ShareRight.READ)
        return event if seen else None

    def _moved(self, event: Event) -> Event | None:
        facts = event.facts
        here = self._may(event, facts["mailbox"], ShareRight.READ)
        left = self._may(event, facts["fromMailbox"], ShareRight.READ)
        told: dict[str, Any] = {"modseq": facts["modseq"]}
        if here and not left:
            told |= {name: facts[name] for name in ("mailbox", "uid", "flags")}
            return replace(event, kind=ChangeKind.MESSAGE_ADDED, facts=told)
        if left and not here:
            told |= {"mailbox": facts["fromMailbox"], "uid": facts["fromUid"]}
            return replace(event, kind=ChangeKind.MESSAGE_DELETED, facts=told)
        return event if here else None

    def _may(self, event: Event, box: int | None, right: ShareRight) -> bool:
        share = self.shares.get(event.stream_id, {}).get(box or 0)
        if share is None or right not in rights_of(share.rights):
            return False
        return bool(event.position[event.stream_id] > share.since)


async def hearing(ctx: Context) -> Hearing:
    """Load the streams that the viewer can follow now.

    Also notes in the viewer whether mailboxes are shared with them.
    """
    mine, shares = own(ctx), defaultdict[int, dict[int, Picked]](dict)
    for row in await mailbox_rights.all_of(ctx):
        shares[row.owner_id][row.mailbox_id] = row
    if shares:
        ctx.viewer.reach.shared = True
    return Hearing(mine, dict(shares))


def sharing(event: Event) -> bool:
    """True if the event is about a mailbox that was shared with the user, or no longer is."""
    return "owner" in event.facts
