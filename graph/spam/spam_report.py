"""GraphQL types of the spam report of a message."""

from typing import Any, Self

import strawberry

from graph.types.errors import attribute_field


@strawberry.type(description="A rule of a spam filter that fits.")
class SpamSymbol:
    name: str = attribute_field("As the filter calls it.")
    score: float = attribute_field("Points it gives; below 0 it speaks for the message.")
    description: str | None = attribute_field("What it means.")


@strawberry.type(description="What scanners found in a message when it came in.")
class SpamReport:
    score: float = attribute_field(
        "Points: the more, the worse; 0 where only a virus was looked for."
    )
    required_score: float = attribute_field(
        "From where the filter would have refused it for anybody."
    )
    action: str | None = attribute_field(
        "Action that the filter recommends, in its own words, such as `add header`. Null if it "
        "recommends none."
    )
    symbols: list[SpamSymbol] = attribute_field("Rules that fit, the weightiest first, up to 100.")
    virus: str | None = attribute_field("Name of a virus in it.")

    @classmethod
    def from_json_or_none(cls, stored_report: dict[str, Any] | None) -> Self | None:
        """Return the stored spam report; None if the message was not scanned."""
        if stored_report is None:
            return None
        return cls(
            score=stored_report["score"],
            required_score=stored_report["required"],
            action=stored_report["action"] or None,
            symbols=[
                SpamSymbol(name=name, score=score, description=text)
                for name, score, text in stored_report["symbols"]
            ],
            virus=stored_report["virus"],
        )
