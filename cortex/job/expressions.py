"""Expressions: ``temp > -90 and station != 'test'``, parsed from text, never evaluated as Python.

The grammar is Python's, cut down: names (```quoted ones`` in backquotes), int, float and 'text'
literals, true, false, null, ``+ - * / // %``, comparisons, ``and or not``, ``x in (a, b)``,
``x is null``, parentheses and calls of the functions in `cortex.job.functions`. Precedence is
Python's. Words of the language are taken in any case (``AND``, ``None``); a column with such a name
goes in backquotes.

What it means (computed by `cortex.kernels.expressions`):

* null: a null operand gives null; ``and``/``or`` are three-valued (``false and null`` is false);
  ``where`` keeps a row only if its condition is true. Ask for null with ``x is null``.
* ints stay ints (int64); a result that does not fit is an error, never wrapped. ``/`` gives a float.
  ``//`` and ``%`` round down, as in Python; of ints by zero they are an error.
* an int beside a float becomes one. Floats follow IEEE: ``x / 0`` is inf, -inf or nan, and nan equals
  nothing. Comparing an int with a float is exact.

An error raised here is an ExpressionError: it names the place and draws a caret under it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from cortex.errors import ExpressionError
from cortex.job.expression_nodes import (
    Binary,
    Call,
    Column,
    Expression,
    In,
    IsNull,
    Literal,
    Node,
    Unary,
    columns_of,
    walk,
)
from cortex.job.functions import AGGREGATES, FUNCTIONS, count_of_arguments
from cortex.limits import EXPRESSION_CHARS_MAX, EXPRESSION_DEPTH_MAX, EXPRESSION_NESTING_MAX

__all__ = [
    "Binary",
    "Call",
    "Column",
    "Expression",
    "In",
    "IsNull",
    "Literal",
    "Node",
    "Parser",
    "Unary",
    "columns_of",
    "parse_expression",
    "problem_at",
    "quote_name",
    "walk",
]


def parse_expression(text: str) -> Expression:
    """Raises ExpressionError."""
    parser = Parser(text)
    root = parser.expression()
    parser.end()
    return Expression(root, text)


def quote_name(name: str) -> str:
    """A column's name as it must be written in an expression."""
    if _NAME.fullmatch(name) and name.lower() not in _WORDS:
        return name
    return "`" + name.replace("`", "``") + "`"


def problem_at(text: str, at: int, message: str, cure: str = "") -> ExpressionError:
    """An error about the character at offset `at` of an expression."""
    line_start = text.rfind("\n", 0, at) + 1
    line = text[line_start:].split("\n", 1)[0].replace("\t", " ")
    column = at - line_start
    shift = max(0, column - _SHOWN_BEFORE)
    shown = (
        ("..." if shift else "")
        + line[shift : shift + _SHOWN]
        + ("..." if len(line) > shift + _SHOWN else "")
    )
    caret = " " * (column - shift + (3 if shift else 0)) + "^"
    return ExpressionError(message, cure=cure, details={"column": at + 1, "expression": f"{shown}\n{caret}"})


_SHOWN, _SHOWN_BEFORE = 100, 60  # characters of a long expression shown around the caret

_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "none", "true", "false"})
_COMPARE: Final = frozenset({"==", "!=", "<", "<=", ">", ">="})
_PRECEDENCE: Final = {"or": 1, "and": 2, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}
_NOT, _COMPARISON, _SIGN = 3, 4, 7

_NAME: Final = re.compile(r"[^\W\d]\w*")
_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\w*)
    | (?P<name>[^\W\d]\w*)
    | (?P<quoted>`(?:[^`]|``)*`)
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<op>\*\*|//|==|!=|<=|>=|<>|&&|\|\||->|:=|[-+*/%<>=(),\[\]!&|^~.;:?@{}])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE_ESCAPES: Final = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "0": "\0",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "`": "`",
}
_INSTEAD: Final = {
    "=": "write == to compare",
    "<>": "write != to compare",
    "&&": "write `and`",
    "||": "write `or`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "^": "there is no power or exclusive or; multiply, or compare with !=",
    "**": "there is no power; multiply instead",
    ".": "a column whose name has a dot goes in backquotes: `a.b`",
}


class Token(NamedTuple):
    kind: str
    text: str
    at: int


class Parser:
    """Tokens to nodes, by precedence climbing. `cortex.job.aggregates` drives it for ``mean(x)``."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > EXPRESSION_CHARS_MAX:
            raise problem_at(text, 0, f"the expression is longer than {EXPRESSION_CHARS_MAX} characters")
        if not text.strip():
            raise problem_at(text, 0, "the expression is empty", "write one, such as temp > 0")
        self._tokens = self._tokenize()
        self._next = 0
        self._nesting = 0

    # --- tokens

    def _tokenize(self) -> list[Token]:
        tokens, at = [], 0
        while True:
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self._bad_character(at)
            kind = match.lastgroup or ""
            tokens.append(Token(kind, match[kind], match.start(kind)))
            if kind == "end":
                return tokens
            at = match.end()

    def _bad_character(self, at: int) -> ExpressionError:
        while self.text[at].isspace():
            at += 1
        char = self.text[at]
        if char in "'\"`":
            return self.problem(at, f"this {char} is never closed", f"add the closing {char}")
        return self.problem(at, f"{char!r} has no meaning in an expression")

    def problem(self, at: int, message: str, cure: str = "") -> ExpressionError:
        return problem_at(self.text, at, message, cure)

    @property
    def token(self) -> Token:
        return self._tokens[self._next]

    def advance(self) -> Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def is_op(self, *texts: str) -> bool:
        return self.token.kind == "op" and self.token.text in texts

    def is_word(self, *words: str) -> bool:
        return self.token.kind == "name" and self.token.text.lower() in words

    def expect(self, op: str, why: str) -> None:
        if not self.is_op(op):
            raise self.problem(
                self.token.at, f"expected {op!r} {why}, found {_shown(self.token)}", self._cure()
            )
        self.advance()

    def end(self) -> None:
        """Nothing may follow."""
        token = self.token
        if token.kind == "end":
            return
        if self.is_op(")", "]"):
            raise self.problem(token.at, f"this {token.text!r} closes nothing")
        if token.kind == "op":
            raise self.problem(token.at, f"{token.text!r} has no meaning here", self._cure())
        raise self.problem(
            token.at,
            f"expected an operator before {_shown(token)}",
            "join two conditions with `and` or `or`; a column name with spaces goes in backquotes",
        )

    def _cure(self) -> str:
        return _INSTEAD.get(self.token.text, "") if self.token.kind == "op" else ""

    # --- nodes

    def expression(self) -> Node:
        return self._binary(1)

    def _binary(self, lowest: int) -> Node:
        left = self._prefix(lowest)
        while True:
            token = self.token
            op = token.text.lower() if token.kind in ("op", "name") else ""
            if lowest <= _COMPARISON and self._starts_comparison():
                left = self._comparison(left)
                if self._starts_comparison():
                    raise self.problem(
                        self.token.at,
                        "comparisons cannot be chained",
                        "write a < b and b < c; compare a comparison in parentheses",
                    )
                continue
            power = _PRECEDENCE.get(op, 0)
            if power == 0 or power < lowest:
                return left
            self.advance()
            right = self._binary(power + 1)
            left = Binary(op, left, right, token.at, self._depth(token.at, left, right))

    def _starts_comparison(self) -> bool:
        if self.is_op(*_COMPARE) or self.is_word("in", "is"):
            return True
        following = self._tokens[min(self._next + 1, len(self._tokens) - 1)]
        return self.is_word("not") and following.kind == "name" and following.text.lower() == "in"

    def _comparison(self, left: Node) -> Node:
        token = self.advance()
        word = token.text.lower()
        if word == "is":
            negated = self._skip_word("not")
            if not self._skip_word("null") and not self._skip_word("none"):
                raise self.problem(
                    self.token.at,
                    f"expected null after `is`, found {_shown(self.token)}",
                    "compare with == or !=",
                )
            return IsNull(left, negated, token.at, self._depth(token.at, left))
        if word in ("in", "not"):
            if word == "not":
                self.advance()
            items = self._items()
            return In(left, items, word == "not", token.at, self._depth(token.at, left))
        right = self._binary(_COMPARISON + 1)
        for side in (left, right):
            if isinstance(side, Literal) and side.kind == "null":
                raise self.problem(
                    side.at, f"`{token.text} null` is never true", "write `x is null` or `x is not null`"
                )
        return Binary(word, left, right, token.at, self._depth(token.at, left, right))

    def _skip_word(self, word: str) -> bool:
        if self.is_word(word):
            self.advance()
            return True
        return False

    def _items(self) -> tuple[Literal, ...]:
        if not self.is_op("(", "["):
            raise self.problem(
                self.token.at,
                f"expected a list after `in`, found {_shown(self.token)}",
                "write x in (1, 2); for a part of a text write contains(s, 'part')",
            )
        close = ")" if self.advance().text == "(" else "]"
        items: list[Literal] = []
        while not self.is_op(close):
            item = self._prefix(_SIGN)
            if not isinstance(item, Literal):
                raise self.problem(
                    item.at,
                    "a list after `in` holds only literals",
                    "write x == a or x == b for other values",
                )
            if item.kind == "null":
                raise self.problem(item.at, "null in a list never matches", "add `or x is null`")
            items.append(item)
            if not self.is_op(","):
                break
            self.advance()
        self.expect(close, "at the end of the list")
        if not items:
            raise self.problem(self._tokens[self._next - 1].at, "the list after `in` is empty")
        return tuple(items)

    def _prefix(self, lowest: int) -> Node:
        token = self.token
        if self.is_word("not"):
            if lowest > _NOT:
                raise self.problem(token.at, "`not` needs parentheses here", "write (not x)")
            self.advance()
            operand = self._nested(lambda: self._binary(_NOT))
            return Unary("not", operand, token.at, self._depth(token.at, operand))
        if self.is_op("-", "+"):
            self.advance()
            operand = self._nested(lambda: self._prefix(_SIGN))
            if isinstance(operand, Literal) and operand.kind in ("int", "float") and operand.text[0] != "-":
                return operand if token.text == "+" else self._negative(operand, token)
            return Unary(token.text, operand, token.at, self._depth(token.at, operand))
        return self._primary()

    def _primary(self) -> Node:
        token = self.advance()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "string":
            return Literal("string", self._unescape(token), token.text, token.at)
        if token.kind == "quoted":
            name = token.text[1:-1].replace("``", "`")
            if not name:
                raise self.problem(token.at, "a column name is empty")
            return Column(name, token.at)
        if token.kind == "op" and token.text == "(":
            inside = self._nested(lambda: self._binary(1))
            if self.is_op(","):
                raise self.problem(self.token.at, "a list has meaning only after `in`")
            self.expect(")", "to close the parenthesis")
            return inside
        if token.kind != "name":
            what = "the expression ends" if token.kind == "end" else f"found {_shown(token)}"
            raise self.problem(token.at, f"expected a value, {what}", _INSTEAD.get(token.text, ""))
        if self.is_op("("):
            return self._call(token)
        return self._word(token)

    def _word(self, token: Token) -> Node:
        word = token.text.lower()
        if word in ("null", "none"):
            return Literal("null", None, "null", token.at)
        if word in ("true", "false"):
            return Literal("bool", word == "true", word, token.at)
        if word in _WORDS:
            raise self.problem(
                token.at,
                f"expected a value, found `{token.text}`",
                f"a column of that name is written `{token.text}` in backquotes",
            )
        return Column(token.text, token.at)

    def _call(self, token: Token) -> Node:
        function = FUNCTIONS.get(token.text) or FUNCTIONS.get(token.text.lower())
        if function is None:
            raise self.problem(
                token.at, f"there is no function {token.text!r}", _nearest_function(token.text)
            )
        args = self.arguments()
        if len(args) < function.args_min or 0 <= function.args_max < len(args):
            raise self.problem(
                token.at,
                f"{function.name} takes {count_of_arguments(function)}, not {len(args)}",
                f"write {function.usage}",
            )
        return Call(function.name, args, token.at, self._depth(token.at, *args))

    def arguments(self, *, star: bool = False) -> tuple[Node, ...]:
        """From the opening parenthesis past the closing one; with `star`, ``(*)`` is no argument."""
        self.expect("(", "before the arguments")
        args: list[Node] = []
        if star and self.is_op("*"):
            self.advance()
            self.expect(")", "after *")
            return ()
        while not self.is_op(")"):
            args.append(self._nested(lambda: self._binary(1)))
            if not self.is_op(","):
                break
            self.advance()
        self.expect(")", "to close the call")
        return tuple(args)

    # --- bounds and literals

    def _nested(self, parse: Callable[[], Node]) -> Node:
        self._nesting += 1
        if self._nesting > EXPRESSION_NESTING_MAX:
            raise self._too_deep(self.token.at, EXPRESSION_NESTING_MAX)
        node = parse()
        self._nesting -= 1
        return node

    def _depth(self, at: int, *children: Node) -> int:
        depth = 1 + max((child.depth for child in children), default=0)
        if depth > EXPRESSION_DEPTH_MAX:
            raise self._too_deep(at, EXPRESSION_DEPTH_MAX)
        return depth

    def _too_deep(self, at: int, most: int) -> ExpressionError:
        return self.problem(
            at,
            f"the expression is nested more than {most} deep",
            "compare with a list (x in (a, b)), or compute a part of it in select",
        )

    def _number(self, token: Token) -> Literal:
        text = token.text
        if re.fullmatch(r"0[0-9_]*[1-9][0-9_]*", text):
            raise self.problem(token.at, f"{text} starts with a zero", f"write '{text}' if it is a text")
        try:
            value = int(text) if re.fullmatch(r"[0-9_]+", text) else float(text)
        except ValueError:
            raise self.problem(
                token.at,
                f"{text!r} is not a number",
                "a column whose name starts with a digit goes in backquotes",
            ) from None
        if isinstance(value, int):
            if value > 2**64 - 1:
                raise self.problem(token.at, f"{text} does not fit in 64 bits", "write it as a float: 1e20")
            return Literal("int", value, text, token.at)
        if value == float("inf"):
            raise self.problem(token.at, f"{text} is too large for a float")
        return Literal("float", value, text, token.at)

    def _negative(self, literal: Literal, minus: Token) -> Literal:
        text = "-" + literal.text
        if literal.kind == "int" and literal.value > 2**63:
            raise self.problem(minus.at, f"{text} does not fit in 64 bits", "write it as a float: -1e20")
        return Literal(literal.kind, -literal.value, text, minus.at)

    def _unescape(self, token: Token) -> str:
        def replace(match: re.Match[str]) -> str:
            digits = match[1] or match[2] or match[3]
            code = int(digits, 16) if digits else -1
            if digits and code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                return chr(code)
            if match[4] in _SIMPLE_ESCAPES:
                return _SIMPLE_ESCAPES[match[4]]
            raise self.problem(
                token.at + 1 + match.start(),
                f"{match[0]} is not an escape",
                r"write \\ for a backslash; known are \n \t \r \0 \' \" \xHH \uHHHH",
            )

        return _ESCAPE.sub(replace, token.text[1:-1])


def _shown(token: Token) -> str:
    return "the end" if token.kind == "end" else repr(token.text)


def _nearest_function(name: str) -> str:
    if name.lower() in AGGREGATES:
        return f"{name.lower()} is an aggregate: write it in `aggregate`, alone"
    near = difflib.get_close_matches(name.lower(), FUNCTIONS, 1, 0.6)
    return f"did you mean {near[0]}?" if near else "there are: " + ", ".join(FUNCTIONS)
