"""Shape rules a person can write: `num_heads * d_kv == d_model`, evaluated on ints or on int64 arrays."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.errors import ConfigError
from march_search.settings import nearest

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


@dataclass(frozen=True)
class Rule:
    """A condition on an architecture's fields: arithmetic, comparisons (chains too), `and`, `or`, `not`."""

    text: str
    """As the person wrote it."""
    tree: ast.expr
    """Parsed and checked."""
    names: frozenset[str]
    """Fields it speaks of."""

    @classmethod
    def parse(cls, text: str, known: Mapping[str, Any]) -> "Rule":
        """A rule whose names are all in `known`.

        Raises:
            ConfigError: not an expression, a name that is no field, or something other than arithmetic and comparison.
        """
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise ConfigError(
                f'the rule "{text}" cannot be read: write one such as "num_heads * d_kv == d_model".'
            ) from None
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(names - set(known)):
            raise ConfigError(f'the rule "{text}" speaks of "{name}". {nearest(name, known)}')
        for node in ast.walk(tree):
            if not _allowed(node):
                raise ConfigError(
                    f'the rule "{text}" may hold numbers, fields, + - * / // %, comparisons, and, or, not.'
                )
        if not isinstance(tree, ast.Compare | ast.BoolOp) and not (
            isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
        ):
            raise ConfigError(
                f'the rule "{text}" is no condition: compare two sides, as in "num_heads * d_kv == d_model".'
            )
        return cls(text, tree, frozenset(names))

    def holds(self, values: Mapping[str, Any]) -> Any:
        """Whether the rule holds: a bool, or a bool array where the values are arrays.

        A division by zero makes a comparison false instead of failing.

        Raises:
            ConfigError: the rule compares or calculates with text as if it were a number.
        """
        try:
            with np.errstate(all="ignore"):
                return _evaluate(self.tree, values)
        except (TypeError, OverflowError):
            raise ConfigError(f'the rule "{self.text}" calculates with something that is no number.') from None


def _allowed(node: ast.AST) -> bool:
    """Whether a rule may contain this piece of syntax."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | str)
    pieces = (ast.Name, ast.Load, ast.BinOp, ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub)
    return isinstance(node, pieces) or type(node) in _BINARY or type(node) in _COMPARE


def _is_number(side: Any) -> Any:
    """False where a division by zero left no number."""
    return ~np.isnan(side) if getattr(side, "dtype", None) is not None and side.dtype.kind == "f" else True


def _numpy(value: Any) -> Any:
    """A Python number as NumPy's, so that scalars and arrays follow the same arithmetic."""
    if isinstance(value, int) and not isinstance(value, bool):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Value of a checked expression."""
    match node:
        case ast.Constant():
            return _numpy(node.value)
        case ast.Name():
            return _numpy(values[node.id])
        case ast.UnaryOp():
            inner = _evaluate(node.operand, values)
            return np.logical_not(inner) if isinstance(node.op, ast.Not) else -inner
        case ast.BinOp():
            left, right = _evaluate(node.left, values), _evaluate(node.right, values)
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
