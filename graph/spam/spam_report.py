"""GraphQL types of the spam report of a message."""

from typing import Any, Self

import strawberry

from graph.types.errors import leaf


@strawberry.type(description="A rule of a spam filter that fits.")
class SpamSymbol:
    name: str = leaf("As the filter calls it.")
    score: float = leaf("Points it gives; below 0 it speaks for the message.")
    description: str | None = leaf("What it means.")


@strawberry.type(description="What scanners found in a message when it came in.")
class SpamReport:
    score: float = leaf("Points: the more, the worse; 0 where only a virus was looked for.")
    required_score: float = leaf("From where the filter would have refused it for anybody.")
    action: str = leaf('What the filter would have done, in its words; "" if none.')
    symbols: list[SpamSymbol] = leaf("Rules that fit, the weightiest first, up to 100.")
    virus: str | None = leaf("Name of a virus in it.")

    @classmethod
    def maybe(cls, known: dict[str, Any] | None) -> Self | None:
        """Return the stored spam report; None if the message was not scanned."""
        if known is None:
            return None
        return cls(
            score=known["score"],
            required_score=known["required"],
            action=known["action"],
            symbols=[
                SpamSymbol(name=name, score=score, description=text)
                for name, score, text in known["symbols"]
            ],
            virus=known["virus"],
        )
