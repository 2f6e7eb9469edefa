"""What a call is, and the list that each stands in."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.conftest import Client

SHARED = {"autoreplyDelete": "UsersInput", "mailboxUnsubscribe": "MailboxSubscribeInput"}
BY_IDS = {
    "addressDelete",
    "apiKeyDelete",
    "appPasswordDelete",
    "auditDelete",
    "bccRuleDelete",
    "certificateRenew",
    "connectorCancel",
    "connectorDelete",
    "dkimKeyActivate",
    "domainAliasDelete",
    "fileDelete",
    "fileShareDelete",
    "filterDelete",
    "identityDelete",
    "pushChannelDelete",
    "pushChannelTest",
    "quarantineDelete",
    "senderRuleDelete",
    "recipientRewriteDelete",
    "relayHostDelete",
    "tlsPolicyDelete",
    "transportDelete",
    "webhookDelete",
    "webhookTest",
}
PAYLOAD = "errors { __typename code message path index } replayed journalCursor"


@dataclass(frozen=True)
class Call:
    """A mutation with its input, and what to ask of its payload."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    payload: str = ""
    journaled: bool = True  # whether it changes what the journal tells of
    nudges: bool = False  # it tells clients to look at an account that is as it was
    by_root: bool = False
    by: Client | None = None  # who else makes it

    def document(self) -> str:
        """The operation, with the input in `$input`."""
        return f"mutation ($input: {self.kind}!) {{ {self.field('input')} }}"

    @property
    def kind(self) -> str:
        """The type of its input."""
        kind = self.name[0].upper() + self.name[1:] + "Input"
        return "IdsInput" if self.name in BY_IDS else SHARED.get(self.name, kind)

    def field(self, variable: str) -> str:
        """The field, with the input in a variable of this name."""
        return f"{self.name}(input: ${variable}) {{ {self.payload} {PAYLOAD} }}"

    async def __call__(self, client: Client, **options: Any) -> Any:
        """What the payload is."""
        own = self.input.get("options", {})
        given = {**self.input, "options": {**own, **options}} if options else self.input
        return (await client(self.document(), input=given))[self.name]


@dataclass(frozen=True)
class Calls:
    """Several mutations that are one unit."""

    each: Sequence[Call]

    async def __call__(self, client: Client) -> list[Any]:
        """What their payloads are."""
        kinds = ", ".join(f"$i{n}: {one.kind}!" for n, one in enumerate(self.each))
        fields = " ".join(f"f{n}: {one.field(f'i{n}')}" for n, one in enumerate(self.each))
        given = {f"i{n}": one.input for n, one in enumerate(self.each)}
        done = await client(f"mutation ({kinds}) @atomic {{ {fields} }}", **given)
        return list(done.values())


Prepare = Callable[[Client, Client], Awaitable[Call]]
CALLS: dict[str, Prepare] = {}


def call(prepare: Prepare) -> Prepare:
    """Take a call into the list, under the name of its mutation."""
    words = prepare.__name__.split("_")
    CALLS[words[0] + "".join(word.capitalize() for word in words[1:])] = prepare
    return prepare
