"""Random changes of all kinds to the mail of a user."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from tests.conftest import raw_message
from tests.support.servers.merganser_server import HttpClient, MerganserProcess

MAILBOXES_AND_MESSAGES_QUERY = """{ viewer { user { mailboxes { nodes { id path specialUse } }
  messages(first: 100) { nodes { id } } } } }"""
DELETED_MESSAGES_QUERY = "{ viewer { user { deletedMessages(first: 3) { nodes { id } } } } }"
FLAGS = ("seen", "flagged", "answered", "deleted")


class RandomChanges:
    """Random changes by one user, and messages to that user. `done` counts the changes by name."""

    def __init__(self, server: MerganserProcess, client: HttpClient, name: str, seed: int) -> None:
        self.server = server
        self.client = client
        self.name = name
        self.random = Random(seed)  # noqa: S311
        self.change_counts: dict[str, int] = {}
        self._number = 0
        self._mailboxes: list[Any] = []
        self._message_ids: list[str] = []

    async def make_changes(self, steps: int) -> None:
        """Make `steps` random changes."""
        weighted_changes: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (6, self.deliver_message),
            (6, self.change_flags),
            (4, self.move_messages),
            (2, self.copy_messages),
            (2, self.delete_messages),
            (1, self.delete_messages_permanently),
            (1, self.restore_messages),
            (3, self.create_mailbox),
            (3, self.rename_mailbox),
            (1, self.delete_mailbox),
        ]
        for _ in range(steps):
            user = (await self.client(MAILBOXES_AND_MESSAGES_QUERY))["viewer"]["user"]
            self._mailboxes = user["mailboxes"]["nodes"]
            self._message_ids = [message["id"] for message in user["messages"]["nodes"]]
            (change,) = self.random.choices(
                [method for _, method in weighted_changes],
                [weight for weight, _ in weighted_changes],
            )
            await change()
            self.change_counts[change.__name__] = self.change_counts.get(change.__name__, 0) + 1

    async def deliver_message(self) -> None:
        assert await self.server.deliver_by_lmtp(
            raw_message(self._new_name()), f"{self.name}@example.org"
        )

    async def change_flags(self) -> None:
        names = self.random.sample(FLAGS, 2)
        changes: dict[str, Any] = {name: self.random.random() < 0.6 for name in names}
        changes["addFlags"] = [self.random.choice(["red", "blue"])]
        await self._change_messages("messageUpdate", set=changes)

    async def move_messages(self) -> None:
        await self._change_messages("messageMove", to={"id": self._random_mailbox()["id"]})

    async def copy_messages(self) -> None:
        await self._change_messages("messageCopy", to={"id": self._random_mailbox()["id"]})

    async def delete_messages(self) -> None:
        await self._change_messages("messageDelete")

    async def delete_messages_permanently(self) -> None:
        await self._change_messages("messageDelete", permanent=True)

    async def restore_messages(self) -> None:
        deleted = (await self.client(DELETED_MESSAGES_QUERY))["viewer"]["user"]["deletedMessages"][
            "nodes"
        ]
        if message_ids := [message["id"] for message in deleted]:
            await self.client.run_mutation(
                "deletedMessageRestore",
                {"select": {"ids": message_ids}},
            )

    async def create_mailbox(self) -> None:
        parent_path = self.random.choice(["", f"{self._random_mailbox()['path']}/"])
        await self.client.run_mutation(
            "mailboxCreate", {"paths": [parent_path + self._new_name("Box")]}
        )

    async def rename_mailbox(self) -> None:
        if mailboxes := self._deletable_mailboxes():
            mailbox = self.random.choice(mailboxes)
            target_path = self._random_mailbox()["path"]
            is_inside_itself = f"{target_path}/".startswith(f"{mailbox['path']}/")
            path = (
                self._new_name("Box")
                if is_inside_itself
                else f"{target_path}/{self._new_name('Box')}"
            )
            await self.client.run_mutation(
                "mailboxRename", {"mailbox": {"id": mailbox["id"]}, "newPath": path}
            )

    async def delete_mailbox(self) -> None:
        if mailboxes := self._deletable_mailboxes():
            mailbox_ref = {"id": self.random.choice(mailboxes)["id"]}
            await self.client.run_mutation(
                "mailboxDelete", {"mailboxes": [mailbox_ref], "recursive": True}
            )

    async def _change_messages(self, name: str, **input_values: Any) -> None:
        if self._message_ids:
            message_ids = self.random.sample(self._message_ids, min(len(self._message_ids), 4))
            await self.client.run_mutation(name, {"select": {"ids": message_ids}, **input_values})

    def _new_name(self, word: str = "Letter") -> str:
        self._number += 1
        return f"{word} {self._number} of {self.name}"

    def _random_mailbox(self) -> Any:
        return self.random.choice(self._mailboxes)

    def _deletable_mailboxes(self) -> list[Any]:
        """The mailboxes that contain no special-use mailbox, so that they can be deleted."""
        special_use_paths = [
            mailbox["path"] for mailbox in self._mailboxes if mailbox["specialUse"]
        ]
        return [
            mailbox
            for mailbox in self._mailboxes
            if not any(f"{path}/".startswith(f"{mailbox['path']}/") for path in special_use_paths)
        ]
