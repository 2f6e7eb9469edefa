"""Parsing of tokens into a syntax tree (RFC 5228, section 8.2).

The names and arguments of commands are checked by the compiler.
"""

from mail.sieve import limits
from mail.sieve.errors import SieveError
from mail.sieve.source_position import Place
from mail.sieve.syntax.lexer import Kind, Token, tokens, wrong
from mail.sieve.syntax.syntax_tree import Argument, Command, Number, Tag, Test, Text, Texts, Tree


def parse(script: str | bytes) -> Tree:
    """Parse a UTF-8 script. Raises SieveError with the first problem."""
    parser = _Parser(script)
    found = parser.commands(0)
    if parser.next.kind is not Kind.END:
        raise parser.unexpected("a command")
    return found


class _Parser:
    """Parses tokens from the first to the last. Its methods raise SieveError."""

    def __init__(self, script: str | bytes) -> None:
        self._tokens = tokens(script)
        self.next = next(self._tokens)

    def take(self) -> Token:
        token = self.next
        if token.kind is not Kind.END:
            self.next = next(self._tokens)
        return token

    def is_sign(self, sign: str) -> bool:
        return self.next.kind is Kind.SIGN and self.next.text == sign

    def expect(self, sign: str) -> None:
        if not self.is_sign(sign):
            raise self.unexpected(sign)
        self.take()

    def unexpected(self, wanted: str) -> SieveError:
        shown = {Kind.TEXT: "a string", Kind.END: "the end", Kind.TAG: f":{self.next.text}"}
        found = shown.get(self.next.kind, self.next.text)
        return wrong(self.next.place, f"{wanted} should stand here, not {found}")

    def commands(self, depth: int) -> Tree:
        found: list[Command] = []
        while self.next.kind is Kind.NAME:
            found.append(self.command(depth))
        return tuple(found)

    def command(self, depth: int) -> Command:
        name = self.take()
        arguments, tests = self.arguments(0)
        block = None
        if self.is_sign("{"):
            if depth == limits.NESTING:
                raise self.too_deep(name.place)
            self.take()
            block = self.commands(depth + 1)
            self.expect("}")
        elif self.is_sign(";"):
            self.take()
        else:
            raise self.unexpected("; or {")
        return Command(name.text, arguments, tests, block, name.place)

    def arguments(self, depth: int) -> tuple[tuple[Argument, ...], tuple[Test, ...]]:
        found: list[Argument] = []
        while (argument := self.argument()) is not None:
            found.append(argument)
        if self.next.kind is Kind.NAME:
            return tuple(found), (self.test(depth),)
        if not self.is_sign("("):
            return tuple(found), ()
        self.take()
        tests = [self.test(depth)]
        while self.is_sign(","):
            self.take()
            tests.append(self.test(depth))
        self.expect(")")
        return tuple(found), tuple(tests)

    def argument(self) -> Argument | None:
        place = self.next.place
        if self.next.kind is Kind.TEXT:
            return Text(self.take().text, place)
        if self.next.kind is Kind.NUMBER:
            return Number(int(self.take().text), place)
        if self.next.kind is Kind.TAG:
            return Tag(self.take().text, place)
        return self.strings(place) if self.is_sign("[") else None

    def strings(self, place: Place) -> Texts:
        self.take()
        found = [self.string()]
        while self.is_sign(","):
            self.take()
            found.append(self.string())
        self.expect("]")
        return Texts(tuple(found), place)

    def string(self) -> Text:
        if self.next.kind is not Kind.TEXT:
            raise self.unexpected("a string")
        place = self.next.place
        return Text(self.take().text, place)

    def test(self, depth: int) -> Test:
        if self.next.kind is not Kind.NAME:
            raise self.unexpected("a test")
        name = self.take()
        if depth == limits.NESTING:
            raise self.too_deep(name.place)
        arguments, tests = self.arguments(depth + 1)
        return Test(name.text, arguments, tests, name.place)

    def too_deep(self, place: Place) -> SieveError:
        return wrong(place, f"at most {limits.NESTING} may stand in each other")
