"""Which streams of the journal a viewer hears, and what of others' streams."""

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

Shares = Mapping[int, Mapping[int, Picked]]  # by owner and folder
ENDING = frozenset({ChangeKind.SECURITY_EVENT, ChangeKind.USER_CHANGED})


class Heard(Protocol):
    """Streams of the journal, and what of them somebody hears at this moment."""

    @property
    def streams(self) -> list[int]:
        """All of them."""

    @property
    def open(self) -> Collection[int]:
        """Those of which it is told that they grow, also where nothing is to be heard."""

    def knows(self, at: Position) -> bool:
        """Whether a position is one of these streams."""

    def places(self, at: Position) -> dict[int, int]:
        """The position in these streams, and no others."""

    def shown(self, event: Event) -> Event | None:
        """The event as it is told; None where it is not for this viewer."""

    def stale(self, events: Iterable[Event]) -> bool:
        """Whether all this is to be found out again before these are told."""

    def ending(self, events: Iterable[Event]) -> bool:
        """Whether the viewer's credential may have ended by these."""


Hear = Callable[[Context], Awaitable[Heard]]


@dataclass(frozen=True, slots=True)
class Hearing:
    """One's own stream, and those of the accounts that share folders with one."""

    mine: int
    shares: Shares = field(default_factory=dict)

    @property
    def streams(self) -> list[int]:
        """All of them."""
        return [self.mine, *self.shares]

    @property
    def open(self) -> Collection[int]:
        """Of others' streams nobody is told that there was nothing to hear."""
        return (self.mine,)

    def knows(self, at: Position) -> bool:
        """Whether a position is one of the own stream, whatever else it names."""
        return self.mine in at

    def stale(self, events: Iterable[Event]) -> bool:
        """Whether anything is shared, or has just been."""
        return bool(self.shares) or any(map(sharing, events))

    def ending(self, events: Iterable[Event]) -> bool:
        """Whether anything happened to the account or its credentials."""
        return any(event.stream_id == self.mine and event.kind in ENDING for event in events)

    def places(self, at: Position) -> dict[int, int]:
        """The position in these streams, and no others.

        One that is not in it was not heard then: it is heard from where its owner began to share.
        """
        found = {self.mine: at[self.mine]} if self.mine in at else {}
        for owner, boxes in self.shares.items():
            since = min(share.since for share in boxes.values())
            found[owner] = at.get(owner, since)
        return found

    def shown(self, event: Event) -> Event | None:
        """The event as it is told; None where it is not for this viewer.

        Of others' it is what happened in folders they share, since they do: a message that goes
        to another folder is gone, one that comes from another is new. Who did it is not told.
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
    """What the viewer hears at this moment. The context learns whether anything is shared."""
    mine, shares = own(ctx), defaultdict[int, dict[int, Picked]](dict)
    for row in await mailbox_rights.all_of(ctx):
        shares[row.owner_id][row.mailbox_id] = row
    if shares:
        ctx.viewer.reach.shared = True
    return Hearing(mine, dict(shares))


def sharing(event: Event) -> bool:
    """Whether something was shared with the account of this stream, or is no longer."""
    return "owner" in event.facts
