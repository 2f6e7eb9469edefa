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
    """Compile a pattern. Raises Invalid if it is invalid or too expensive."""
    return GroupRegex(BoundedRegex(pattern, allow_slashes=False), ignore_case)


def match_groups(
    regex: GroupRegex, text: str, count_steps: Callable[[int], None]
) -> MatchGroups | None:
    """Return the text of the match and of each group, "" for an unused group.

    `count_steps` is called with the number of steps and may raise. Returns None without a match.
    """
    best = group_offsets(regex, text, count_steps)
    if best is None:
        return None
    return tuple(
        text[best[one] : best[one + 1]] if best[one + 1] >= 0 else ""
        for one in range(0, len(best), 2)
    )


def group_offsets(
    regex: GroupRegex, text: str, count_steps: Callable[[int], None]
) -> _GroupOffsets | None:
    """Return start and end of the match and of each group, -1 for an unused group.

    Returns None without a match.
    """
    search = _RegexSearch(regex, text)
    threads: list[_Path] = []
    blank = (-1,) * (2 * regex.expression.group_count + 2)
    best: _GroupOffsets | None = None
    visited, weight = 0, 1 + regex.expression.group_count // 8
    for at in range(len(text) + 1):
        if best is None:
            threads.append((regex.expression.first_state, (at, *blank[1:])))
        if not threads:
            break
        reached = search.reachable_paths(threads, at)
        visited += 1 + len(reached) * weight
        if visited >= _STATES_PER_COUNT:
            count_steps(visited // STATES_PER_STEP)
            visited = 0
        complete = [places for state, places in reached if state == regex.expression.last_state]
        if complete and (best is None or complete[0][0] <= best[0]):
            best = (complete[0][0], at, *complete[0][2:])
        threads = search.paths_after(reached, at, best) if at < len(text) else []
    count_steps(visited // STATES_PER_STEP)
    return best


class _RegexSearch:
    """The search for a pattern in one text."""

    def __init__(self, regex: GroupRegex, text: str) -> None:
        self.states, self.fold, self.text = regex.expression.states, regex.ignore_case, text
        self.cached_matches: dict[tuple[int, str], bool] = {}

    def reachable_paths(self, paths: Iterable[_Path], offset: int) -> list[_Path]:
        """Return the paths that need no character, with the preferred path to each state."""
        seen: set[int] = set()
        found: list[_Path] = []
        for one in paths:
            left = [one]
            while left:
                number, places = left.pop()
                if number in seen:
                    continue
                seen.add(number)
                state = self.states[number]
                if state.group_edge is not None:
                    places = (*places[: state.group_edge], offset, *places[state.group_edge + 1 :])
                found.append((number, places))
                free = state.condition is None
                free = free or (state.condition == BEGIN and offset == 0)
                free = free or (state.condition == END and offset == len(self.text))
                if free:
                    left.extend((way, places) for way in reversed(state.next_states))
        return found

    def paths_after(
        self, paths: Iterable[_Path], offset: int, best: _GroupOffsets | None
    ) -> list[_Path]:
        """Return the paths after the next character.

        Paths that begin after the best match are dropped.
        """
        sign = self.text[offset]
        return [
            (way, places)
            for number, places in paths
            if (best is None or places[0] <= best[0]) and self.state_matches(number, sign)
            for way in self.states[number].next_states
        ]

    def state_matches(self, number: int, character: str) -> bool:
        """True if a state matches a character. Results are cached."""
        known = self.cached_matches.get((number, character))
        if known is None:
            takes = self.states[number].condition
            known = isinstance(takes, CharacterSet) and takes.matches(
                character, ignore_case=self.fold
            )
            self.cached_matches[number, character] = known
        return known
