"""GraphQL types of the spam report of a message."""

from typing import Any, Self

import strawberry

from graph.types.errors import attribute_field


@strawberry.type(description="Test of the spam filter that matched a message.")
class SpamSymbol:
    name: str = attribute_field("Name of the test in the spam filter.")
    score: float = attribute_field(
        "Points that the test adds to the spam score. Below 0: a sign of ham."
    )
    description: str | None = attribute_field(
        "Description of the test. Null: the filter sent none."
    )


@strawberry.type(
    description="Results of the spam filter and the virus scanner when a message arrived."
)
class SpamReport:
    score: float = attribute_field(
        "Spam score of the message; higher is worse. 0 if only the virus scanner ran, or the "
        "filter gave no such score."
    )
    required_score: float = attribute_field(
        "Spam score from which the filter recommends to reject a message. 0 if only the virus "
        "scanner ran, or the filter gave no such score."
    )
    action: str | None = attribute_field(
        "Action that the filter recommends, in the filter's words, such as `add "
        "header`. Null: none."
    )
    symbols: list[SpamSymbol] = attribute_field(
        "Tests that matched, sorted by the absolute value of `score`, the highest first. At most "
        "100."
    )
    virus: str | None = attribute_field("Name of the virus that was found. Null: none.")

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
