"""Changes of all kinds, one after the other, as chance has them."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from tests.conftest import raw_message
from tests.support.servers.merganser_server import Client, Server

HERE = """{ viewer { user { mailboxes { id path specialUse }
  messages(first: 100) { nodes { id } } } } }"""
ARCHIVED = "{ viewer { user { archivedMessages(first: 3) { nodes { id } } } } }"
FLAGS = ("seen", "flagged", "answered", "deleted")


class Storm:
    """What one user does to their mail, and who writes to them. `done` counts it, by name."""

    def __init__(self, server: Server, client: Client, name: str, seed: int) -> None:
        self.server = server
        self.client = client
        self.name = name
        self.chance = Random(seed)  # noqa: S311
        self.done: dict[str, int] = {}
        self._number = 0
        self._boxes: list[Any] = []
        self._messages: list[str] = []

    async def blow(self, steps: int) -> None:
        """So many changes."""
        deeds: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (6, self.deliver), (6, self.flag), (4, self.move), (2, self.copy), (2, self.archive),
            (1, self.destroy), (1, self.restore), (3, self.make), (3, self.rename),
            (1, self.remove),
        ]  # fmt: skip
        for _ in range(steps):
            user = (await self.client(HERE))["viewer"]["user"]
            self._boxes = user["mailboxes"]
            self._messages = [each["id"] for each in user["messages"]["nodes"]]
            (deed,) = self.chance.choices([one for _, one in deeds], [many for many, _ in deeds])
            await deed()
            self.done[deed.__name__] = self.done.get(deed.__name__, 0) + 1

    async def deliver(self) -> None:
        assert await self.server.deliver(raw_message(self._new()), f"{self.name}@example.org")

    async def flag(self) -> None:
        names = self.chance.sample(FLAGS, 2)
        changes: dict[str, Any] = {name: self.chance.random() < 0.6 for name in names}
        changes["addFlags"] = [self.chance.choice(["red", "blue"])]
        await self._change("messageUpdate", set=changes)

    async def move(self) -> None:
        await self._change("messageMove", to={"id": self._box()["id"]})

    async def copy(self) -> None:
        await self._change("messageCopy", to={"id": self._box()["id"]})

    async def archive(self) -> None:
        await self._change("messageDelete")

    async def destroy(self) -> None:
        await self._change("messageDelete", permanent=True)

    async def restore(self) -> None:
        archived = (await self.client(ARCHIVED))["viewer"]["user"]["archivedMessages"]["nodes"]
        if ids := [each["id"] for each in archived]:
            await self.client.do("archivedMessageRestore", {"ids": ids})

    async def make(self) -> None:
        above = self.chance.choice(["", f"{self._box()['path']}/"])
        await self.client.do("mailboxCreate", {"paths": [above + self._new("Box")]})

    async def rename(self) -> None:
        if boxes := self._free():
            box = self.chance.choice(boxes)
            other = self._box()["path"]
            inside = f"{other}/".startswith(f"{box['path']}/")
            path = self._new("Box") if inside else f"{other}/{self._new('Box')}"
            await self.client.do("mailboxRename", {"mailbox": {"id": box["id"]}, "newPath": path})

    async def remove(self) -> None:
        if boxes := self._free():
            gone = {"id": self.chance.choice(boxes)["id"]}
            await self.client.do("mailboxDelete", {"mailboxes": [gone], "recursive": True})

    async def _change(self, name: str, **given: Any) -> None:
        if self._messages:
            some = self.chance.sample(self._messages, min(len(self._messages), 4))
            await self.client.do(name, {"select": {"ids": some}, **given})

    def _new(self, word: str = "Letter") -> str:
        self._number += 1
        return f"{word} {self._number} of {self.name}"

    def _box(self) -> Any:
        return self.chance.choice(self._boxes)

    def _free(self) -> list[Any]:
        """Folders that may be renamed and deleted with all below them."""
        roles = [box["path"] for box in self._boxes if box["specialUse"]]
        return [
            box
            for box in self._boxes
            if not any(f"{path}/".startswith(f"{box['path']}/") for path in roles)
        ]
