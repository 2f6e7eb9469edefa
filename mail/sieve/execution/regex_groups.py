"""Regular expressions that say what they found: leftmost, and of those the longest (POSIX).

The pattern is one of `mail.text.bounded_regex`. All its states are followed at once, each with the
places where its groups begin and end, so the time is at most states times characters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from mail.sieve.execution.comparators import Matched
from mail.text.bounded_regex import BEGIN, END, Expression, Signs

PER_STEP = 200  # states that are looked at in one step of a script
_LOOKS = 4096  # between two counts

_Places = tuple[int, ...]  # where the whole and each group begin and end; -1: nowhere
_Thread = tuple[int, _Places]  # a state, and how it was reached


@dataclass(frozen=True, slots=True)
class Regex:
    """A pattern that is ready."""

    expression: Expression
    fold: bool  # in any case


@lru_cache(64)
def compiled(pattern: str, *, fold: bool) -> Regex:
    """Read a pattern; Invalid where it is none, or one that takes too long."""
    return Regex(Expression(pattern, slashes=False), fold)


def match(regex: Regex, text: str, spend: Callable[[int], None]) -> Matched | None:
    """What the whole and each group is, "" for a group that has no part in it.

    `spend` is told of steps as they are made, and may raise.
    """
    best = places(regex, text, spend)
    if best is None:
        return None
    return tuple(
        text[best[one] : best[one + 1]] if best[one + 1] >= 0 else ""
        for one in range(0, len(best), 2)
    )


def places(regex: Regex, text: str, spend: Callable[[int], None]) -> _Places | None:
    """Where the whole and each group begin and end, -1 for a group that has no part in it."""
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
    """One text that is looked through."""

    def __init__(self, regex: Regex, text: str) -> None:
        self.states, self.fold, self.text = regex.expression.states, regex.fold, text
        self.fits: dict[tuple[int, str], bool] = {}

    def closed(self, begun: Iterable[_Thread], at: int) -> list[_Thread]:
        """All states that are reached without taking a character, the better way to each."""
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
        """The states behind the next character; none that begin later than what was found."""
        sign = self.text[at]
        return [
            (way, places)
            for number, places in reached
            if (best is None or places[0] <= best[0]) and self.takes(number, sign)
            for way in self.states[number].ways
        ]

    def takes(self, number: int, sign: str) -> bool:
        """Whether a state takes this character."""
        known = self.fits.get((number, sign))
        if known is None:
            takes = self.states[number].takes
            known = isinstance(takes, Signs) and takes.fit(sign, fold=self.fold)
            self.fits[number, sign] = known
        return known
