"""A limit on the comparisons of graphql-core's rule OverlappingFieldsCanBeMerged.

The rule compares all fields with one response name, and all fragments of one selection, with each
other. Their number grows with the square: a few hundred fields take seconds.
"""

from collections.abc import Iterable, Mapping

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

MAX_VISITED_SELECTIONS = 20_000  # more count as too many comparisons
MAX_FOLLOWED_LEVELS = 80  # fragments can be cyclic

Fragments = Mapping[str, FragmentDefinitionNode]


class OverlapCounter:
    """A counter of the compared pairs of one document. It stops above the limit."""

    def __init__(self, fragments: Fragments, max_pairs: int) -> None:
        self.fragments = fragments
        self.max_pairs = max_pairs
        self.pairs = 0
        self._visited_selections = 0
        self._reached_fragments: set[str] = set()  # fragments

    def exceeds_limit(self, document: DocumentNode) -> bool:
        """True if the document has more pairs than allowed."""
        for node in document.definitions:
            if isinstance(node, OperationDefinitionNode):
                self._count_pairs(node.selection_set)
        for name, fragment in self.fragments.items():
            if name not in self._reached_fragments:
                self._count_pairs(fragment.selection_set)
        return self._is_exceeded()

    def _is_exceeded(self) -> bool:
        return self.pairs > self.max_pairs or self._visited_selections > MAX_VISITED_SELECTIONS

    def _count_pairs(self, selection: SelectionSetNode) -> None:
        waiting: list[tuple[tuple[SelectionSetNode, ...], int]] = [((selection,), 0)]
        while waiting and not self._is_exceeded():
            merged_selections, level = waiting.pop()
            fields_by_response_name = self._group_fields_and_count_fragments(merged_selections)
            for group in fields_by_response_name.values():
                self.pairs += len(group) * (len(group) - 1) // 2
                below = tuple(node.selection_set for node in group if node.selection_set)
                if below and level < MAX_FOLLOWED_LEVELS:
                    waiting.append((below, level + 1))

    def _group_fields_and_count_fragments(
        self, merged_selections: Iterable[SelectionSetNode]
    ) -> dict[str, list[FieldNode]]:
        """Return the fields of the merged selections by response name."""
        fields: dict[str, list[FieldNode]] = {}
        spread_fragments: set[str] = set()
        waiting = list(merged_selections)
        while waiting and self._visited_selections <= MAX_VISITED_SELECTIONS:
            selections = waiting.pop().selections
            self._visited_selections += 1 + len(selections)
            for node in selections:
                if isinstance(node, FieldNode):
                    fields.setdefault((node.alias or node.name).value, []).append(node)
                elif isinstance(node, InlineFragmentNode):
                    waiting.append(node.selection_set)
                elif (
                    isinstance(node, FragmentSpreadNode) and node.name.value not in spread_fragments
                ):
                    spread_fragments.add(node.name.value)
                    if fragment := self.fragments.get(node.name.value):
                        waiting.append(fragment.selection_set)
        self._reached_fragments |= spread_fragments
        self.pairs += len(spread_fragments) * (len(spread_fragments) - 1) // 2
        return fields
