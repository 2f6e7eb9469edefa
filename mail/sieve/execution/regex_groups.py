"""Regular expressions that return their groups: the leftmost, longest match (POSIX).

The pattern is compiled by `mail.text.bounded_regex`. All states are followed at once, each with the
offsets of its groups, so the time is at most states times characters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from mail.sieve.execution.comparators import Matched
from mail.text.bounded_regex import BEGIN, END, Expression, Signs

PER_STEP = 200  # visited states that count as one step of a script
_LOOKS = 4096  # visited states between two calls of `count_steps`

_Places = tuple[int, ...]  # start and end of the match and of each group; -1: not matched
_Thread = tuple[int, _Places]  # a state, and the offsets on the way to it


@dataclass(frozen=True, slots=True)
class Regex:
    """A compiled pattern."""

    expression: Expression
    fold: bool  # also for non-ASCII letters


@lru_cache(64)
def compiled(pattern: str, *, fold: bool) -> Regex:
    """Compile a pattern. Raises Invalid if it is invalid or too expensive."""
    return Regex(Expression(pattern, slashes=False), fold)


def match(regex: Regex, text: str, spend: Callable[[int], None]) -> Matched | None:
    """Return the text of the match and of each group, "" for an unused group.

    `count_steps` is called with the number of steps and may raise. Returns None without a match.
    """
    best = places(regex, text, spend)
    if best is None:
        return None
    return tuple(
        text[best[one] : best[one + 1]] if best[one + 1] >= 0 else ""
        for one in range(0, len(best), 2)
    )


def places(regex: Regex, text: str, spend: Callable[[int], None]) -> _Places | None:
    """Return start and end of the match and of each group, -1 for an unused group.

    Returns None without a match.
    """
    search = _Search(regex, text)
    threads: list[_Thread] = []
    blank = (-1,) * (2 * regex.expression.groups + 2)
    best: _Places | None = None
    looked, weight = 0, 1 + regex.expression.groups // 8
    for at in range(len(text) + 1):
        if best is None:
            threads.append((regex.expression.start, (at, *blank[1:])))
        if not threads:
            break
        reached = search.closed(threads, at)
        looked += 1 + len(reached) * weight
        if looked >= _LOOKS:
            spend(looked // PER_STEP)
            looked = 0
        ended = [places for state, places in reached if state == regex.expression.last]
        if ended and (best is None or ended[0][0] <= best[0]):
            best = (ended[0][0], at, *ended[0][2:])
        threads = search.stepped(reached, at, best) if at < len(text) else []
    spend(looked // PER_STEP)
    return best


class _Search:
    """The search for a pattern in one text."""

    def __init__(self, regex: Regex, text: str) -> None:
        self.states, self.fold, self.text = regex.expression.states, regex.fold, text
        self.fits: dict[tuple[int, str], bool] = {}

    def closed(self, begun: Iterable[_Thread], at: int) -> list[_Thread]:
        """Return the paths that need no character, with the preferred path to each state."""
        seen: set[int] = set()
        found: list[_Thread] = []
        for one in begun:
            left = [one]
            while left:
                number, places = left.pop()
                if number in seen:
                    continue
                seen.add(number)
                state = self.states[number]
                if state.edge is not None:
                    places = (*places[: state.edge], at, *places[state.edge + 1 :])
                found.append((number, places))
                free = state.takes is None
                free = free or (state.takes == BEGIN and at == 0)
                free = free or (state.takes == END and at == len(self.text))
                if free:
                    left.extend((way, places) for way in reversed(state.ways))
        return found

    def stepped(self, reached: Iterable[_Thread], at: int, best: _Places | None) -> list[_Thread]:
        """Return the paths after the next character.

        Paths that begin after the best match are dropped.
        """
        sign = self.text[at]
        return [
            (way, places)
            for number, places in reached
            if (best is None or places[0] <= best[0]) and self.takes(number, sign)
            for way in self.states[number].ways
        ]

    def takes(self, number: int, sign: str) -> bool:
        """True if a state matches a character. Results are cached."""
        known = self.fits.get((number, sign))
        if known is None:
            takes = self.states[number].takes
            known = isinstance(takes, Signs) and takes.fit(sign, fold=self.fold)
            self.fits[number, sign] = known
        return known
