"""How much graphql-core would compare to find out whether the fields of a document can be merged.

It compares all fields of one response name with each other, and all fragments that stand beside
each other: both grow with the square, and a few hundred take seconds.
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

STEPS = 20_000  # selections that are looked at; more count as too many comparisons
LEVELS = 80  # fields inside fields that are followed: fragments may go in circles

Fragments = Mapping[str, FragmentDefinitionNode]


class Comparisons:
    """Counts for all definitions of a document together, and stops where it is too much."""

    def __init__(self, fragments: Fragments, most: int) -> None:
        self.fragments = fragments
        self.most = most
        self.pairs = 0
        self._steps = 0
        self._reached: set[str] = set()  # fragments

    def exceed(self, document: DocumentNode) -> bool:
        """Say whether there are more than allowed."""
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
        """The fields of selections that stand beside each other, by their names in the answer."""
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
