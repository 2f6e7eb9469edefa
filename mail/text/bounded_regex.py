"""Regular expressions of users in bounded time: at most states times characters.

A subset of Perl without look-around and back-references, which can't be bounded. All states are
followed at once (Thompson, 1968), so no pattern makes a text slow.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_PATTERN_LENGTH = 200  # characters of a pattern
MAX_STATES = 500  # of a pattern; counted repetitions are expanded
MAX_GROUP_DEPTH = 20  # groups in groups
MAX_TEXT_LENGTH = (
    320  # characters that are searched; an address has fewer (RFC 5321, section 4.5.3.1)
)
MAX_REPEAT_COUNT = 64  # the largest count in braces
CHARACTER_CLASSES: dict[str, Callable[[str], bool]] = {
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
class CharacterSet:
    """A set of characters that matches one character."""

    singles: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()  # keys of CHARACTER_CLASSES; upper case negates
    is_negated: bool = False  # all characters except these

    def matches(self, character: str, *, ignore_case: bool = True) -> bool:
        """True if the set contains a character, by default in either case."""
        forms = {character, character.lower(), character.upper()} if ignore_case else {character}
        is_member = not forms.isdisjoint(self.singles) or any(
            low <= form <= high for form in forms for low, high in self.ranges
        )
        if not is_member:
            is_member = any(
                CHARACTER_CLASSES[kind.lower()](character) is kind.islower()
                for kind in self.classes
            )
        return is_member is not self.is_negated


@dataclass(slots=True)
class NfaState:
    """A state of the automaton: the condition to leave it, and the next states."""

    condition: CharacterSet | str | None = None  # None: none; or the anchor BEGIN or END
    next_states: list[int] = field(default_factory=list)  # preferred state first
    group_edge: int | None = None  # 2n: group n begins here, 2n + 1: it ends


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Patterns that match one after another."""

    items: tuple["PatternNode", ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Patterns of which one matches."""

    items: tuple["PatternNode", ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """A repeated pattern; `max_count` None means no limit."""

    item: "PatternNode"
    min_count: int
    max_count: int | None


@dataclass(frozen=True, slots=True)
class CaptureGroup:
    """A pattern in parentheses; groups are counted from 1."""

    item: "PatternNode"
    number: int


PatternNode = CharacterSet | str | Concatenation | Alternation | Repetition | CaptureGroup


class BoundedRegex:
    """A compiled pattern that is searched for without regard to case."""

    def __init__(self, pattern: str, *, allow_slashes: bool = True) -> None:
        """Compile a pattern; with `allow_slashes` it can be written as /pattern/.

        Raises InvalidInput if the pattern is invalid or not in the supported subset.
        """
        if not pattern or len(pattern) > MAX_PATTERN_LENGTH:
            raise _pattern_error(f"Must have from 1 to {MAX_PATTERN_LENGTH} characters.")
        self.states: list[NfaState] = []
        reader = _PatternParser(
            _without_perl_slashes_and_options(pattern) if allow_slashes else pattern
        )
        self.first_state, self.last_state = self._build(reader.parse())
        self.group_count = reader.group_count

    def is_found_in(self, text: str) -> bool:
        """True if the pattern matches anywhere in the first 320 characters of a text."""
        end = len(text)
        text = text[:MAX_TEXT_LENGTH]
        states: set[int] = set()
        for at in range(len(text) + 1):
            states.add(self.first_state)
            reached_states = self._reachable_states(states, at_start=at == 0, at_end=at == end)
            if self.last_state in reached_states:
                return True
            if at < len(text):
                states = set(self._states_after(reached_states, text[at]))
        return False

    def _states_after(self, states: Iterable[int], character: str) -> Iterator[int]:
        for reached_state in states:
            state = self.states[reached_state]
            if isinstance(state.condition, CharacterSet) and state.condition.matches(character):
                yield from state.next_states

    def _reachable_states(self, states: set[int], *, at_start: bool, at_end: bool) -> set[int]:
        """Return all states that are reached without reading a character."""
        seen, left = set(states), list(states)
        while left:
            state = self.states[left.pop()]
            is_unconditional = state.condition is None
            is_unconditional = (
                is_unconditional
                or (state.condition == BEGIN and at_start)
                or (state.condition == END and at_end)
            )
            for next_state in state.next_states if is_unconditional else ():
                if next_state not in seen:
                    seen.add(next_state)
                    left.append(next_state)
        return seen

    def _add_state(self, condition: CharacterSet | str | None = None) -> int:
        if len(self.states) >= MAX_STATES:
            raise _pattern_error("The pattern is too long with its repetitions expanded.")
        self.states.append(NfaState(condition))
        return len(self.states) - 1

    def _build(self, node: PatternNode) -> tuple[int, int]:
        """Add the states of a node, and return the first and the last one."""
        if isinstance(node, CharacterSet | str):
            begin, end = self._add_state(node), self._add_state()
            self.states[begin].next_states.append(end)
            return begin, end
        if isinstance(node, Concatenation):
            return self._build_concatenation(node.items)
        if isinstance(node, CaptureGroup):
            begin, end = self._build_concatenation([node.item])
            last = self._add_state()
            self.states[end].next_states.append(last)
            self.states[begin].group_edge, self.states[last].group_edge = (
                2 * node.number,
                2 * node.number + 1,
            )
            return begin, last
        if isinstance(node, Alternation):
            begin, end = self._add_state(), self._add_state()
            for item in node.items:
                first, last = self._build(item)
                self.states[begin].next_states.append(first)
                self.states[last].next_states.append(end)
            return begin, end
        return self._build_repetition(node)

    def _build_concatenation(self, nodes: Iterable[PatternNode]) -> tuple[int, int]:
        begin = end = self._add_state()
        for item in nodes:
            first, last = self._build(item)
            self.states[end].next_states.append(first)
            end = last
        return begin, end

    def _build_repetition(self, node: Repetition) -> tuple[int, int]:
        begin, end = self._build_concatenation([node.item] * node.min_count)
        last = self._add_state()
        if node.max_count is None:
            first, back = self._build(node.item)
            self.states[end].next_states += [first, last]
            self.states[back].next_states += [first, last]
            return begin, last
        for _ in range(node.max_count - node.min_count):
            first, behind = self._build(node.item)
            self.states[end].next_states += [first, last]
            end = behind
        self.states[end].next_states.append(last)
        return begin, last


class _PatternParser:
    """Parses a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.position = pattern, 0
        self.group_count = 0

    @property
    def next_character(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def read_character(self) -> str:
        sign = self.next_character
        if not sign:
            raise _pattern_error("The pattern ends early.")
        self.position += 1
        return sign

    def parse(self) -> PatternNode:
        """Parse the whole pattern. Raises InvalidInput."""
        node = self.parse_alternation(0)
        if self.next_character:
            raise _pattern_error("A closing bracket has no opening bracket.")
        return node

    def parse_alternation(self, depth: int) -> PatternNode:
        if depth > MAX_GROUP_DEPTH:
            raise _pattern_error(f"Groups are nested at most {MAX_GROUP_DEPTH} levels deep.")
        items = [self.parse_concatenation(depth)]
        while self.next_character == "|":
            self.read_character()
            items.append(self.parse_concatenation(depth))
        return items[0] if len(items) == 1 else Alternation(tuple(items))

    def parse_concatenation(self, depth: int) -> PatternNode:
        items: list[PatternNode] = []
        while self.next_character and self.next_character not in "|)":
            items.append(self.parse_repetitions(self.parse_atom(depth)))
        return Concatenation(tuple(items))

    def parse_atom(self, depth: int) -> PatternNode:
        sign = self.read_character()
        if sign == "(":
            return self.parse_group(depth)
        if sign == "[":
            return self.parse_bracket()
        if sign == ".":
            return CharacterSet(is_negated=True)
        if sign in (BEGIN, END):
            return sign
        if sign == "\\":
            return self.parse_escape()
        if sign in "*+?{":
            raise _pattern_error(f"{sign} has nothing to repeat.")
        return CharacterSet(frozenset(sign))

    def parse_group(self, depth: int) -> PatternNode:
        number = 0
        if self.next_character == "?":
            self.read_character()
            sign = self.read_character()
            if sign == "i" and self.pattern.startswith(")", self.position):
                self.read_character()
                return Concatenation(())  # every search ignores case
            if sign != ":":
                raise _pattern_error("Of groups with ?, only (?:…) and (?i) are supported.")
        else:
            self.group_count = number = self.group_count + 1
        node = self.parse_alternation(depth + 1)
        if self.read_character() != ")":
            raise _pattern_error("A group is not closed.")
        return CaptureGroup(node, number) if number else node

    def parse_escape(self) -> CharacterSet:
        """Parse the character after a backslash, which is read already.

        It is a class (`d`, `w`, `s` or their opposites) or a character that stands for itself.
        Raises InvalidInput for any other letter or digit.
        """
        sign = self.read_character()
        if sign.lower() in CHARACTER_CLASSES:
            return CharacterSet(classes=(sign,))
        if sign.isalnum():
            raise _pattern_error(f"\\{sign} is unknown: use \\d, \\w, \\s and their opposites.")
        return CharacterSet(frozenset(sign))

    def parse_bracket(self) -> CharacterSet:
        others = self.next_character == "^"
        if others:
            self.read_character()
        singles, spans, kinds = set[str](), list[tuple[str, str]](), list[str]()
        while not (self.next_character == "]" and (singles or spans or kinds)):
            member = self.parse_bracket_member(kinds)
            if member is None:
                continue
            if self.next_character == "-" and self.pattern[
                self.position + 1 : self.position + 2
            ] not in ("", "]"):
                self.read_character()
                high = self.parse_bracket_member(kinds)
                if high is None or high < member:
                    raise _pattern_error("A range must go from a lower to a higher character.")
                spans.append((member, high))
            else:
                singles.add(member)
        self.read_character()
        return CharacterSet(frozenset(singles), tuple(spans), tuple(kinds), others)

    def parse_bracket_member(self, classes: list[str]) -> str | None:
        """Return a character of a bracket expression; None if a class was added to `classes`."""
        sign = self.read_character()
        if sign == "[" and self.next_character == ":":
            classes.append(self.parse_posix_class())
            return None
        if sign != "\\":
            return sign
        escaped = self.parse_escape()
        classes += escaped.classes
        return next(iter(escaped.singles), None)

    def parse_posix_class(self) -> str:
        name, end, _ = self.pattern[self.position + 1 :].partition(":]")
        if not end or len(name) == 1 or name not in CHARACTER_CLASSES:
            raise _pattern_error("The character class in [::] is unknown.")
        self.position += len(name) + 3
        return name

    def parse_repetitions(self, node: PatternNode) -> PatternNode:
        while self.next_character and self.next_character in "*+?{":
            sign = self.read_character()
            min_count, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, 0))
            if sign == "{":
                min_count, most = self.parse_counts()
            if isinstance(node, str):
                raise _pattern_error(f"{sign} has nothing to repeat.")
            node = Repetition(node, min_count, most)
            if self.next_character == "?":  # greediness doesn't change whether there is a match
                self.read_character()
        return node

    def parse_counts(self) -> tuple[int, int | None]:
        """Return the minimum and maximum count of {n}, {n,} or {n,m}."""
        inside = ""
        while self.next_character != "}":
            inside += self.read_character()
        self.read_character()
        low, comma, high = inside.partition(",")
        texts = [low, *([high] if high else [])]
        if not all(text.isascii() and text.isdigit() and len(text) <= 2 for text in texts):  # noqa: PLR2004
            raise _pattern_error("Braces must contain one number, or two separated by a comma.")
        min_count = int(low)
        most = int(high) if high else None if comma else min_count
        if max(min_count, most or 0) > MAX_REPEAT_COUNT or (most is not None and most < min_count):
            raise _pattern_error(f"The counts in braces must rise, up to {MAX_REPEAT_COUNT}.")
        return min_count, most


def _without_perl_slashes_and_options(pattern: str) -> str:
    """Remove the slashes and options that Perl writes around a pattern."""
    if pattern.startswith("/"):
        inner, slash, options = pattern[1:].rpartition("/")
        if slash and set(options) <= {"i", "u"}:
            return inner.replace("\\/", "/")
    return pattern


def _pattern_error(text: str) -> InvalidInput:
    return InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["sendersRegex"])
