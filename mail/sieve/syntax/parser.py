"""Parsing of tokens into a syntax tree (RFC 5228, section 8.2).

The names and arguments of commands are checked by the compiler.
"""

from mail.sieve import limits
from mail.sieve.errors import SieveError
from mail.sieve.source_position import SourcePosition
from mail.sieve.syntax.lexer import SieveToken, TokenType, syntax_error, tokenize
from mail.sieve.syntax.syntax_tree import (
    Argument,
    CommandNode,
    NumberNode,
    StringListNode,
    StringNode,
    TagNode,
    TestNode,
    Tree,
)


def parse_script(script: str | bytes) -> Tree:
    """Parse a UTF-8 script. Raises SieveError with the first problem."""
    parser = _Parser(script)
    commands = parser.parse_commands(0)
    if parser.next_token.token_type is not TokenType.END:
        raise parser.unexpected_token("a command")
    return commands


class _Parser:
    """Parses tokens from the first to the last. Its methods raise SieveError."""

    def __init__(self, script: str | bytes) -> None:
        self._tokens = tokenize(script)
        self.next_token = next(self._tokens)

    def read_token(self) -> SieveToken:
        token = self.next_token
        if token.token_type is not TokenType.END:
            self.next_token = next(self._tokens)
        return token

    def next_is_sign(self, sign: str) -> bool:
        return self.next_token.token_type is TokenType.SIGN and self.next_token.text == sign

    def read_sign(self, sign: str) -> None:
        if not self.next_is_sign(sign):
            raise self.unexpected_token(sign)
        self.read_token()

    def unexpected_token(self, expected: str) -> SieveError:
        token_texts = {
            TokenType.TEXT: "a string",
            TokenType.END: "the end",
            TokenType.TAG: f":{self.next_token.text}",
        }
        token_text = token_texts.get(self.next_token.token_type, self.next_token.text)
        return syntax_error(self.next_token.position, f"Expected {expected}, found {token_text}.")

    def parse_commands(self, depth: int) -> Tree:
        commands: list[CommandNode] = []
        while self.next_token.token_type is TokenType.NAME:
            commands.append(self.parse_command(depth))
        return tuple(commands)

    def parse_command(self, depth: int) -> CommandNode:
        name = self.read_token()
        arguments, tests = self.parse_arguments(0)
        block = None
        if self.next_is_sign("{"):
            if depth == limits.MAX_NESTING:
                raise self.too_deep_error(name.position)
            self.read_token()
            block = self.parse_commands(depth + 1)
            self.read_sign("}")
        elif self.next_is_sign(";"):
            self.read_token()
        else:
            raise self.unexpected_token("; or {")
        return CommandNode(name.text, arguments, tests, block, name.position)

    def parse_arguments(self, depth: int) -> tuple[tuple[Argument, ...], tuple[TestNode, ...]]:
        arguments: list[Argument] = []
        while (argument := self.parse_argument()) is not None:
            arguments.append(argument)
        if self.next_token.token_type is TokenType.NAME:
            return tuple(arguments), (self.parse_test(depth),)
        if not self.next_is_sign("("):
            return tuple(arguments), ()
        self.read_token()
        tests = [self.parse_test(depth)]
        while self.next_is_sign(","):
            self.read_token()
            tests.append(self.parse_test(depth))
        self.read_sign(")")
        return tuple(arguments), tuple(tests)

    def parse_argument(self) -> Argument | None:
        position = self.next_token.position
        if self.next_token.token_type is TokenType.TEXT:
            return StringNode(self.read_token().text, position)
        if self.next_token.token_type is TokenType.NUMBER:
            return NumberNode(int(self.read_token().text), position)
        if self.next_token.token_type is TokenType.TAG:
            return TagNode(self.read_token().text, position)
        return self.parse_string_list(position) if self.next_is_sign("[") else None

    def parse_string_list(self, position: SourcePosition) -> StringListNode:
        self.read_token()
        strings = [self.parse_string()]
        while self.next_is_sign(","):
            self.read_token()
            strings.append(self.parse_string())
        self.read_sign("]")
        return StringListNode(tuple(strings), position)

    def parse_string(self) -> StringNode:
        if self.next_token.token_type is not TokenType.TEXT:
            raise self.unexpected_token("a string")
        position = self.next_token.position
        return StringNode(self.read_token().text, position)

    def parse_test(self, depth: int) -> TestNode:
        if self.next_token.token_type is not TokenType.NAME:
            raise self.unexpected_token("a test")
        name = self.read_token()
        if depth == limits.MAX_NESTING:
            raise self.too_deep_error(name.position)
        arguments, tests = self.parse_arguments(depth + 1)
        return TestNode(name.text, arguments, tests, name.position)

    def too_deep_error(self, position: SourcePosition) -> SieveError:
        return syntax_error(
            position, f"Blocks and tests can be nested at most {limits.MAX_NESTING} levels deep."
        )
