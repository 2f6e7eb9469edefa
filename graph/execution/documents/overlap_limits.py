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

STEPS = 20_000  # more count as too many comparisons
LEVELS = 80  # fragments can be cyclic

Fragments = Mapping[str, FragmentDefinitionNode]


class Comparisons:
    """A counter of the compared pairs of one document. It stops above the limit."""

    def __init__(self, fragments: Fragments, most: int) -> None:
        self.fragments = fragments
        self.most = most
        self.pairs = 0
        self._steps = 0
        self._reached: set[str] = set()  # fragments

    def exceed(self, document: DocumentNode) -> bool:
        """True if the document has more pairs than allowed."""
        for node in document.definitions:
            if isinstance(node, OperationDefinitionNode):
                self._count(node.selection_set)
        for name, fragment in self.fragments.items():
            if name not in self._reached:
                self._count(fragment.selection_set)
        return self._enough()

    def _enough(self) -> bool:
        return self.pairs > self.most or self._steps > STEPS

    def _count(self, selection: SelectionSetNode) -> None:
        waiting: list[tuple[tuple[SelectionSetNode, ...], int]] = [((selection,), 0)]
        while waiting and not self._enough():
            beside, level = waiting.pop()
            named = self._merged(beside)
            for group in named.values():
                self.pairs += len(group) * (len(group) - 1) // 2
                below = tuple(node.selection_set for node in group if node.selection_set)
                if below and level < LEVELS:
                    waiting.append((below, level + 1))

    def _merged(self, beside: Iterable[SelectionSetNode]) -> dict[str, list[FieldNode]]:
        """Return the fields of the merged selections by response name."""
        named: dict[str, list[FieldNode]] = {}
        spread: set[str] = set()
        waiting = list(beside)
        while waiting and self._steps <= STEPS:
            selections = waiting.pop().selections
            self._steps += 1 + len(selections)
            for node in selections:
                if isinstance(node, FieldNode):
                    named.setdefault((node.alias or node.name).value, []).append(node)
                elif isinstance(node, InlineFragmentNode):
                    waiting.append(node.selection_set)
                elif isinstance(node, FragmentSpreadNode) and node.name.value not in spread:
                    spread.add(node.name.value)
                    if fragment := self.fragments.get(node.name.value):
                        waiting.append(fragment.selection_set)
        self._reached |= spread
        self.pairs += len(spread) * (len(spread) - 1) // 2
        return named
