"""The mutations that can't be part of an `@atomic` request say so, and are listed in the docs."""

import re
from pathlib import Path

from tests.support.schema.printed_schema import SDL

PAGE = Path(__file__).parents[2] / "docs" / "api" / "transactions.md"
SENTENCE = re.compile(r"[^.]*\b[Tt]his mutation can't be part of an `@atomic` request")


def test_docs_list_all_mutations_that_cannot_be_atomic() -> None:
    section = PAGE.read_text().partition("### Mutations that can't be atomic")[2]
    listed = set(re.findall(r"`(\w+)`", section.partition("\n#")[0]))
    assert SDL.mutation_type
    sentences = {
        name: match[0]
        for name, field in SDL.mutation_type.fields.items()
        if (match := SENTENCE.search(field.description or ""))
    }
    assert len(sentences) >= 36
    excluded = {name for name, text in sentences.items() if "With `proof`, this" not in text}
    assert excluded - listed == set()
