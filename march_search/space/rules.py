"""Parse shape rules such as `num_heads * d_kv == d_model` and evaluate them on ints or int64 arrays."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.errors import ConfigError, nearest, shown

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


LONGEST = 2000
"""Largest number of characters of a rule."""

MOST_NODES = 500
"""Largest number of operators, fields and values of a rule; each level of them takes a call."""


@dataclass(frozen=True)
class Rule:
    """A condition on the fields of an architecture: arithmetic, comparisons (also chained), `and`, `or`, `not`."""

    text: str
    """The rule as written by the user."""
    tree: ast.expr
    """Parsed and checked expression."""
    names: frozenset[str]
    """Fields that the rule mentions."""

    @classmethod
    def parse(cls, text: str, known: Mapping[str, Any]) -> "Rule":
        """Parse a rule and check that all its names are in `known`.

        Raises:
            ConfigError: If the text is not a condition, or contains an unknown field or unsupported syntax.
        """
        if len(text) > LONGEST:
            raise ConfigError(
                f"the rule {shown(text)} has {len(text):,} characters: use several rules of at most {LONGEST:,}."
            )
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError(
                f'the rule {shown(text)} is not a valid expression: use one such as "num_heads * d_kv == d_model".'
            ) from None
        if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
            raise ConfigError(f"the rule {shown(text)} has too many operators: split it into several rules.")
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(names - set(known)):
            raise ConfigError(f'the rule {shown(text)} has the unknown field "{name}". {nearest(name, known)}')
        for node in ast.walk(tree):
            if not _allowed(node):
                raise ConfigError(
                    f"the rule {shown(text)} may use only numbers, text, fields, + - * / // %, comparisons, and, or, "
                    "not."
                )
        if not isinstance(tree, ast.Compare | ast.BoolOp) and not (
            isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
        ):
            raise ConfigError(
                f'the rule {shown(text)} is not a condition: compare two sides, as in "num_heads * d_kv == d_model".'
            )
        return cls(text, tree, frozenset(names))

    def left(self, values: Mapping[str, Any]) -> Any:
        """Return the left side of a rule that is one comparison, as a number or as an array.

        Raises:
            ConfigError: If it uses text as a number, or whole numbers that do not fit into 64 bits.
        """
        assert isinstance(self.tree, ast.Compare), self.text
        return self._value(self.tree.left, values)

    def holds(self, values: Mapping[str, Any]) -> Any:
        """Return whether the rule holds, as a bool, or as a bool array if the values are arrays.

        A comparison with the result of a division by zero is false.

        Raises:
            ConfigError: If the rule uses text as a number, or whole numbers that do not fit into 64 bits.
        """
        return self._value(self.tree, values)

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        """Return the value of a part of the rule."""
        try:
            with np.errstate(all="ignore"):
                return _evaluate(node, values)
        except TypeError:
            raise ConfigError(f"the rule {shown(self.text)} calculates with a value that is not a number.") from None
        except OverflowError:
            raise ConfigError(
                f"the rule {shown(self.text)} calculates with whole numbers of 2^63 or more: use smaller factors."
            ) from None


def _allowed(node: ast.AST) -> bool:
    """Return whether a rule may contain this syntax node."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | str)
    pieces = (ast.Name, ast.Load, ast.BinOp, ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub)
    return isinstance(node, pieces) or type(node) in _BINARY or type(node) in _COMPARE


def _is_number(side: Any) -> Any:
    """Return where `side` is not NaN, the result of a division by zero."""
    return ~np.isnan(side) if getattr(side, "dtype", None) is not None and side.dtype.kind == "f" else True


def _numpy(value: Any) -> Any:
    """Convert a Python number to NumPy, so that scalars and arrays use the same arithmetic."""
    if isinstance(value, int) and not isinstance(value, bool):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def _number(value: Any) -> Any:
    """Return a number or an array of numbers; raise a TypeError for text, which Python would repeat or join."""
    if isinstance(value, str):
        raise TypeError
    return value


def _check_fits(operation: ast.operator, left: Any, right: Any) -> None:
    """Raise an OverflowError if a result may not fit into 64 bits: NumPy wraps round without a warning."""
    if isinstance(operation, ast.Mult | ast.Add | ast.Sub):
        sides = [np.asarray(side) for side in (left, right)]
        if all(side.dtype.kind in "bi" and side.size for side in sides):
            a, b = (max(abs(int(side.min())), abs(int(side.max()))) for side in sides)
            if (a * b if isinstance(operation, ast.Mult) else a + b) >= 2**63:
                raise OverflowError


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Return the value of a checked expression."""
    match node:
        case ast.Constant():
            return _numpy(node.value)
        case ast.Name():
            return _numpy(values[node.id])
        case ast.UnaryOp():
            inner = _evaluate(node.operand, values)
            return np.logical_not(inner) if isinstance(node.op, ast.Not) else -_number(inner)
        case ast.BinOp():
            left, right = (_number(_evaluate(side, values)) for side in (node.left, node.right))
            _check_fits(node.op, left, right)
            if isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod) and not np.all(right):
                right = np.where(right == 0, np.nan, right)
            return _BINARY[type(node.op)](left, right)
        case ast.BoolOp():
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return join.reduce(np.broadcast_arrays(*(_evaluate(v, values) for v in node.values)))
        case ast.Compare():
            sides = [_evaluate(side, values) for side in (node.left, *node.comparators)]
            result: Any = True
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
                result = np.logical_and(result, _COMPARE[type(op)](left, right) & _is_number(left) & _is_number(right))
            return result
    raise AssertionError(f"unchecked rule: {ast.dump(node)}")
