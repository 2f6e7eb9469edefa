"""Sample calls of mutations, and the list of all of them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.conftest import GraphQLClient

PAYLOAD_FIELDS = "errors { __typename code message path } replayed journalCursor"


@dataclass(frozen=True)
class MutationCall:
    """A mutation with its input, and the fields of its payload to select."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    payload: str = ""
    journaled: bool = True  # False if no change is written to the journal
    nudges_clients: bool = False  # True if it writes an event without a change
    by_root: bool = False  # True if it is called with the platform key
    other_caller: GraphQLClient | None = (
        None  # the caller, if it is neither ada nor the platform key
    )

    def document(self) -> str:
        """The document, with the input in `$input`."""
        return f"mutation ($input: {self.input_type}!) {{ {self.payload_field('input')} }}"

    @property
    def input_type(self) -> str:
        """The input type of the mutation."""
        return self.name[0].upper() + self.name[1:] + "Input"

    def payload_field(self, variable: str) -> str:
        """The field of the mutation, with the input in this variable."""
        return f"{self.name}(input: ${variable}) {{ {self.payload} {PAYLOAD_FIELDS} }}"

    async def __call__(self, client: GraphQLClient, **options: Any) -> Any:
        """Run the mutation and return its payload."""
        own_options = self.input.get("options", {})
        input_fields = (
            {**self.input, "options": {**own_options, **options}} if options else self.input
        )
        return (await client(self.document(), input=input_fields))[self.name]


@dataclass(frozen=True)
class AtomicMutationCalls:
    """Several mutations in one atomic request."""

    calls: Sequence[MutationCall]

    async def __call__(self, client: GraphQLClient) -> list[Any]:
        """Run the mutations and return their payloads."""
        variables = ", ".join(f"$i{n}: {call_.input_type}!" for n, call_ in enumerate(self.calls))
        fields = " ".join(
            f"f{n}: {call_.payload_field(f'i{n}')}" for n, call_ in enumerate(self.calls)
        )
        inputs = {f"i{n}": call_.input for n, call_ in enumerate(self.calls)}
        payloads = await client(f"mutation ({variables}) @atomic {{ {fields} }}", **inputs)
        return list(payloads.values())


PrepareCall = Callable[[GraphQLClient, GraphQLClient], Awaitable[MutationCall]]
SAMPLE_CALLS: dict[str, PrepareCall] = {}


def register_call(prepare: PrepareCall) -> PrepareCall:
    """Register a sample call under the name of its mutation, which is that of the function."""
    words = prepare.__name__.split("_")
    SAMPLE_CALLS[words[0] + "".join(word.capitalize() for word in words[1:])] = prepare
    return prepare
