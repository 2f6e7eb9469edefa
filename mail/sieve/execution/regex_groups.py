"""Regular expressions that return their groups: the leftmost, longest match (POSIX).

The pattern is compiled by `mail.text.bounded_regex`. All states are followed at once, each with the
offsets of its groups, so the time is at most states times characters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from mail.sieve.execution.comparators import MatchGroups
from mail.text.bounded_regex import BEGIN, END, BoundedRegex, CharacterSet

STATES_PER_STEP = 200  # visited states that count as one step of a script
_STATES_PER_COUNT = 4096  # visited states between two calls of `count_steps`

_GroupOffsets = tuple[int, ...]  # start and end of the match and of each group; -1: not matched
_Path = tuple[int, _GroupOffsets]  # a state, and the offsets on the way to it


@dataclass(frozen=True, slots=True)
class GroupRegex:
    """A compiled pattern."""

    expression: BoundedRegex
    ignore_case: bool  # also for non-ASCII letters


@lru_cache(64)
def compile_regex(pattern: str, *, ignore_case: bool) -> GroupRegex:
    """Compile a pattern. Raises InvalidInput if it is invalid or too expensive."""
    return GroupRegex(BoundedRegex(pattern, allow_slashes=False), ignore_case)


def match_groups(
    regex: GroupRegex, text: str, count_steps: Callable[[int], None]
) -> MatchGroups | None:
    """Return the text of the match and of each group, "" for an unused group.

    `count_steps` is called with the number of steps and may raise. Returns None without a match.
    """
    best_offsets = match_group_offsets_or_none(regex, text, count_steps)
    if best_offsets is None:
        return None
    return tuple(
        text[best_offsets[position] : best_offsets[position + 1]]
        if best_offsets[position + 1] >= 0
        else ""
        for position in range(0, len(best_offsets), 2)
    )


def match_group_offsets_or_none(
    regex: GroupRegex, text: str, count_steps: Callable[[int], None]
) -> _GroupOffsets | None:
    """Return start and end of the match and of each group, -1 for an unused group.

    Returns None without a match.
    """
    search = _RegexSearch(regex, text)
    threads: list[_Path] = []
    blank = (-1,) * (2 * regex.expression.group_count + 2)
    best_offsets: _GroupOffsets | None = None
    visited, weight = 0, 1 + regex.expression.group_count // 8
    for at in range(len(text) + 1):
        if best_offsets is None:
            threads.append((regex.expression.first_state, (at, *blank[1:])))
        if not threads:
            break
        reached = search.reachable_paths(threads, at)
        visited += 1 + len(reached) * weight
        if visited >= _STATES_PER_COUNT:
            count_steps(visited // STATES_PER_STEP)
            visited = 0
        complete = [offsets for state, offsets in reached if state == regex.expression.last_state]
        if complete and (best_offsets is None or complete[0][0] <= best_offsets[0]):
            best_offsets = (complete[0][0], at, *complete[0][2:])
        threads = search.paths_after(reached, at, best_offsets) if at < len(text) else []
    count_steps(visited // STATES_PER_STEP)
    return best_offsets


class _RegexSearch:
    """The search for a pattern in one text."""

    def __init__(self, regex: GroupRegex, text: str) -> None:
        self.states, self.fold, self.text = regex.expression.states, regex.ignore_case, text
        self.cached_matches: dict[tuple[int, str], bool] = {}

    def reachable_paths(self, paths: Iterable[_Path], offset: int) -> list[_Path]:
        """Return the paths that need no character, with the preferred path to each state."""
        seen: set[int] = set()
        found_paths: list[_Path] = []
        for path in paths:
            left = [path]
            while left:
                number, offsets = left.pop()
                if number in seen:
                    continue
                seen.add(number)
                state = self.states[number]
                if state.group_edge is not None:
                    offsets = (
                        *offsets[: state.group_edge],
                        offset,
                        *offsets[state.group_edge + 1 :],
                    )
                found_paths.append((number, offsets))
                is_unconditional = state.condition is None
                is_unconditional = is_unconditional or (state.condition == BEGIN and offset == 0)
                is_unconditional = is_unconditional or (
                    state.condition == END and offset == len(self.text)
                )
                if is_unconditional:
                    left.extend((next_state, offsets) for next_state in reversed(state.next_states))
        return found_paths

    def paths_after(
        self, paths: Iterable[_Path], offset: int, best_offsets: _GroupOffsets | None
    ) -> list[_Path]:
        """Return the paths after the next character.

        Paths that begin after the best match are dropped.
        """
        sign = self.text[offset]
        return [
            (next_state, offsets)
            for number, offsets in paths
            if (best_offsets is None or offsets[0] <= best_offsets[0])
            and self.state_matches(number, sign)
            for next_state in self.states[number].next_states
        ]

    def state_matches(self, number: int, character: str) -> bool:
        """True if a state matches a character. Results are cached."""
        is_match = self.cached_matches.get((number, character))
        if is_match is None:
            takes = self.states[number].condition
            is_match = isinstance(takes, CharacterSet) and takes.matches(
                character, ignore_case=self.fold
            )
            self.cached_matches[number, character] = is_match
        return is_match
