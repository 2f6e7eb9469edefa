"""Regular expressions of users in bounded time: at most states times characters.

A subset of Perl without look-around and back-references, which can't be bounded. All states are
followed at once (Thompson, 1968), so no pattern makes a text slow.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from models.errors import Invalid

LONGEST = 200  # characters of a pattern
STATES = 500  # of a pattern; counted repetitions are expanded
DEPTH = 20  # groups in groups
TEXT = 320  # characters that are searched; an address has fewer (RFC 5321, section 4.5.3.1)
REPEATED = 64  # the largest count in braces
KINDS: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda sign: sign.isalnum() or sign == "_",
    "s": str.isspace,
    # Those of POSIX, in brackets: [[:alpha:]]
    "alnum": str.isalnum,
    "alpha": str.isalpha,
    "blank": " \t".__contains__,
    "cntrl": lambda sign: not sign.isprintable() and not sign.isspace(),
    "digit": str.isdecimal,
    "graph": lambda sign: sign.isprintable() and sign != " ",
    "lower": str.islower,
    "print": str.isprintable,
    "punct": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".__contains__,
    "space": str.isspace,
    "upper": str.isupper,
    "xdigit": "0123456789abcdefABCDEF".__contains__,
}
BEGIN, END = "^", "$"


@dataclass(frozen=True, slots=True)
class Signs:
    """A set of characters that matches one character."""

    singles: frozenset[str] = frozenset()
    spans: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()  # keys of CHARACTER_CLASSES; upper case negates
    others: bool = False  # all characters except these

    def fit(self, sign: str, *, fold: bool = True) -> bool:
        """True if the set contains a character, by default in either case."""
        forms = {sign, sign.lower(), sign.upper()} if fold else {sign}
        found = not forms.isdisjoint(self.singles) or any(
            low <= form <= high for form in forms for low, high in self.spans
        )
        if not found:
            found = any(KINDS[kind.lower()](sign) is kind.islower() for kind in self.kinds)
        return found is not self.others


@dataclass(slots=True)
class State:
    """A state of the automaton: the condition to leave it, and the next states."""

    takes: Signs | str | None = None  # None: none; or the anchor BEGIN or END
    ways: list[int] = field(default_factory=list)  # preferred state first
    edge: int | None = None  # 2n: group n begins here, 2n + 1: it ends


@dataclass(frozen=True, slots=True)
class Row:
    """Patterns that match one after another."""

    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Patterns of which one matches."""

    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A repeated pattern; `max_count` None means no limit."""

    item: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """A pattern in parentheses; groups are counted from 1."""

    item: "Node"
    number: int


Node = Signs | str | Row | Choice | Repeat | Group


class Expression:
    """A compiled pattern that is searched for without regard to case."""

    def __init__(self, pattern: str, *, slashes: bool = True) -> None:
        """Compile a pattern; with `allow_slashes` it can be written as /pattern/.

        Raises Invalid if the pattern is invalid or not in the supported subset.
        """
        if not pattern or len(pattern) > LONGEST:
            raise _wrong(f"1 to {LONGEST} characters")
        self.states: list[State] = []
        reader = _Reader(_bare(pattern) if slashes else pattern)
        self.start, self.last = self._built(reader.read())
        self.groups = reader.groups

    def found_in(self, text: str) -> bool:
        """True if the pattern matches anywhere in the first 320 characters of a text."""
        end = len(text)
        text = text[:TEXT]
        now: set[int] = set()
        for at in range(len(text) + 1):
            now.add(self.start)
            here = self._closed(now, first=at == 0, last=at == end)
            if self.last in here:
                return True
            if at < len(text):
                now = set(self._stepped(here, text[at]))
        return False

    def _stepped(self, here: Iterable[int], sign: str) -> Iterator[int]:
        for one in here:
            state = self.states[one]
            if isinstance(state.takes, Signs) and state.takes.fit(sign):
                yield from state.ways

    def _closed(self, begun: set[int], *, first: bool, last: bool) -> set[int]:
        """Return all states that are reached without reading a character."""
        seen, left = set(begun), list(begun)
        while left:
            state = self.states[left.pop()]
            free = state.takes is None
            free = free or (state.takes == BEGIN and first) or (state.takes == END and last)
            for way in state.ways if free else ():
                if way not in seen:
                    seen.add(way)
                    left.append(way)
        return seen

    def _new(self, takes: Signs | str | None = None) -> int:
        if len(self.states) >= STATES:
            raise _wrong("too long with its repetitions written out")
        self.states.append(State(takes))
        return len(self.states) - 1

    def _built(self, node: Node) -> tuple[int, int]:
        """Add the states of a node, and return the first and the last one."""
        if isinstance(node, Signs | str):
            begin, end = self._new(node), self._new()
            self.states[begin].ways.append(end)
            return begin, end
        if isinstance(node, Row):
            return self._row(node.items)
        if isinstance(node, Group):
            begin, end = self._row([node.item])
            last = self._new()
            self.states[end].ways.append(last)
            self.states[begin].edge, self.states[last].edge = 2 * node.number, 2 * node.number + 1
            return begin, last
        if isinstance(node, Choice):
            begin, end = self._new(), self._new()
            for item in node.items:
                first, last = self._built(item)
                self.states[begin].ways.append(first)
                self.states[last].ways.append(end)
            return begin, end
        return self._repeated(node)

    def _row(self, items: Iterable[Node]) -> tuple[int, int]:
        begin = end = self._new()
        for item in items:
            first, last = self._built(item)
            self.states[end].ways.append(first)
            end = last
        return begin, end

    def _repeated(self, node: Repeat) -> tuple[int, int]:
        begin, end = self._row([node.item] * node.least)
        last = self._new()
        if node.most is None:
            first, back = self._built(node.item)
            self.states[end].ways += [first, last]
            self.states[back].ways += [first, last]
            return begin, last
        for _ in range(node.most - node.least):
            first, behind = self._built(node.item)
            self.states[end].ways += [first, last]
            end = behind
        self.states[end].ways.append(last)
        return begin, last


class _Reader:
    """Parses a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.groups = 0

    @property
    def next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        sign = self.next
        if not sign:
            raise _wrong("it ends early")
        self.at += 1
        return sign

    def read(self) -> Node:
        """Parse the whole pattern. Raises Invalid."""
        node = self.choice(0)
        if self.next:
            raise _wrong("a ) closes nothing")
        return node

    def choice(self, depth: int) -> Node:
        if depth > DEPTH:
            raise _wrong(f"at most {DEPTH} groups in each other")
        items = [self.row(depth)]
        while self.next == "|":
            self.take()
            items.append(self.row(depth))
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def row(self, depth: int) -> Node:
        items: list[Node] = []
        while self.next and self.next not in "|)":
            items.append(self.repeated(self.single(depth)))
        return Row(tuple(items))

    def single(self, depth: int) -> Node:
        sign = self.take()
        if sign == "(":
            return self.group(depth)
        if sign == "[":
            return self.set_()
        if sign == ".":
            return Signs(others=True)
        if sign in (BEGIN, END):
            return sign
        if sign == "\\":
            return self.escaped()
        if sign in "*+?{":
            raise _wrong(f"{sign} repeats nothing")
        return Signs(frozenset(sign))

    def group(self, depth: int) -> Node:
        number = 0
        if self.next == "?":
            self.take()
            sign = self.take()
            if sign == "i" and self.pattern.startswith(")", self.at):
                self.take()
                return Row(())  # every search ignores case
            if sign != ":":
                raise _wrong("of groups with ? only (?:…), and (?i)")
        else:
            self.groups = number = self.groups + 1
        node = self.choice(depth + 1)
        if self.take() != ")":
            raise _wrong("a group has no end")
        return Group(node, number) if number else node

    def escaped(self) -> Signs:
        sign = self.take()
        if sign.lower() in KINDS:
            return Signs(kinds=(sign,))
        if sign.isalnum():
            raise _wrong(f"\\{sign} is not known: there are \\d, \\w, \\s, and their opposites")
        return Signs(frozenset(sign))

    def set_(self) -> Signs:
        others = self.next == "^"
        if others:
            self.take()
        singles, spans, kinds = set[str](), list[tuple[str, str]](), list[str]()
        while not (self.next == "]" and (singles or spans or kinds)):
            one = self.member(kinds)
            if one is None:
                continue
            if self.next == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("", "]"):
                self.take()
                high = self.member(kinds)
                if high is None or high < one:
                    raise _wrong("a span goes from a lower to a higher character")
                spans.append((one, high))
            else:
                singles.add(one)
        self.take()
        return Signs(frozenset(singles), tuple(spans), tuple(kinds), others)

    def member(self, kinds: list[str]) -> str | None:
        """Return a character of a bracket expression; None if a class was added to `classes`."""
        sign = self.take()
        if sign == "[" and self.next == ":":
            kinds.append(self.named())
            return None
        if sign != "\\":
            return sign
        meant = self.escaped()
        kinds += meant.kinds
        return next(iter(meant.singles), None)

    def named(self) -> str:
        name, end, _ = self.pattern[self.at + 1 :].partition(":]")
        if not end or len(name) == 1 or name not in KINDS:
            raise _wrong("there is no such kind of characters in [::]")
        self.at += len(name) + 3
        return name

    def repeated(self, node: Node) -> Node:
        while self.next and self.next in "*+?{":
            sign = self.take()
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, 0))
            if sign == "{":
                least, most = self.counts()
            if isinstance(node, str):
                raise _wrong(f"{sign} repeats nothing")
            node = Repeat(node, least, most)
            if self.next == "?":  # greediness doesn't change whether there is a match
                self.take()
        return node

    def counts(self) -> tuple[int, int | None]:
        """Return the minimum and maximum count of {n}, {n,} or {n,m}."""
        inside = ""
        while self.next != "}":
            inside += self.take()
        self.take()
        low, comma, high = inside.partition(",")
        texts = [low, *([high] if high else [])]
        if not all(text.isascii() and text.isdigit() and len(text) <= 2 for text in texts):  # noqa: PLR2004
            raise _wrong("in braces stand one number, or two with a comma")
        least = int(low)
        most = int(high) if high else None if comma else least
        if max(least, most or 0) > REPEATED or (most is not None and most < least):
            raise _wrong(f"counts rise, up to {REPEATED}")
        return least, most


def _bare(pattern: str) -> str:
    """Remove the slashes and options that Perl writes around a pattern."""
    if pattern.startswith("/"):
        inner, slash, options = pattern[1:].rpartition("/")
        if slash and set(options) <= {"i", "u"}:
            return inner.replace("\\/", "/")
    return pattern


def _wrong(text: str) -> Invalid:
    return Invalid(text, constraint="pattern", path=["sendersRegex"])
