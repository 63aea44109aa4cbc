"""A parser for expressions of potentials on the command line; the text is never evaluated as Python.

    ring * bar    0.3 * left + 0.7 * right    ring / wide**0.5    guidance(ring, wide, 1.5)
    mixture([ring, bar])    conjunction([p, q], base)    digits[3] * digits[8]

The text is parsed with Python's ``ast`` module, so that precedence is Python's. Any syntax other than names, numbers,
``* / + **``, conditions in brackets and the functions above is rejected with its position. What brackets hold, numbers
and texts, a model reads itself, by its method ``in_brackets`` or else ``given``.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Sequence

from .algebra import Potential, mixture
from .guidance import conjunction, guidance

FUNCTIONS = ("mixture", "guidance", "conjunction")


def parse(text: str, *, load: Callable[[str], Potential], known: Sequence[str]) -> Potential:
    """Return the potential that ``text`` describes.

    Args:
        text: the expression.
        load: returns the potential of a name; called once for each name in the expression.
        known: names that are allowed.

    Raises:
        ValueError: ``text`` is not in the grammar, a name is unknown, or potentials cannot be composed; the
            message names the position where there is one.

    >>> from ppl_diffusion import load
    >>> parse("ring * bar / wide**0.5", load=load, known=["ring", "bar", "wide"])
    ring * bar / wide**0.5
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None) or len(text) + 1  # 0 is the end
        raise ValueError(f"cannot read {text!r} at position {column}: write for example 'ring * bar'") from error
    try:
        value = _Evaluator(text, load, known).evaluate(tree)
    except RecursionError as error:
        raise ValueError("the expression is too deep: a power, ring**3, is shorter than ring * ring * ring") from error
    if not isinstance(value, Potential):
        raise ValueError(f"{text!r} is a number, not a density: write for example 'ring * bar'")
    return value


class _Evaluator:
    """Evaluates the syntax tree of an expression, loading each model and each condition of it once."""

    def __init__(self, text: str, load: Callable[[str], Potential], known: Sequence[str]) -> None:
        self.text, self.load, self.known = text, load, known
        self.loaded: dict[str, Potential] = {}

    def evaluate(self, node: ast.expr) -> Potential | float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            try:
                return float(node.value)  # type: ignore[arg-type]
            except OverflowError as error:
                raise self.error(node, "this number is too large") from error
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.number(node.operand)
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.BinOp):
            return self.operation(node)
        if isinstance(node, ast.Subscript):
            return self.condition(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.call(node, node.func.id)
        raise self.error(node, "only names, numbers, * / + **, brackets and functions are allowed")

    def operation(self, node: ast.BinOp) -> Potential | float:
        left, right = self.evaluate(node.left), self.evaluate(node.right)
        try:
            if isinstance(node.op, ast.Mult):
                return left * right  # type: ignore[operator]
            if isinstance(node.op, ast.Div):
                return left / right  # type: ignore[operator]
            if isinstance(node.op, ast.Pow):
                return left**right  # type: ignore[operator]
            if isinstance(node.op, ast.Add):
                return left + right  # type: ignore[operator]
        except (TypeError, ValueError, ArithmeticError) as error:
            raise self.error(node, str(error)) from error
        raise self.error(node, "only * / + ** are operators between densities")

    def name(self, node: ast.Name) -> Potential:
        if node.id not in self.known:
            close = difflib.get_close_matches(node.id, self.known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise self.error(node, f"no model is called {node.id!r}: {hint}use one of {', '.join(self.known)}")
        if node.id not in self.loaded:
            self.loaded[node.id] = self.load(node.id)
        return self.loaded[node.id]

    def condition(self, node: ast.Subscript) -> Potential:
        model = self.evaluate(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        values = [_literal(part) for part in parts]
        given = getattr(model, "in_brackets", getattr(model, "given", None))
        if not isinstance(node.value, ast.Name) or given is None or None in values:
            raise self.error(
                node,
                "a condition stands in brackets after a model, such as digits[3], cubes[0.3, 0.6] or pets['a cat']",
            )
        key = ast.dump(node)
        try:
            if key not in self.loaded:
                self.loaded[key] = given(*values)
            return self.loaded[key]
        except (TypeError, ValueError) as error:
            raise self.error(node, str(error)) from error

    def call(self, node: ast.Call, name: str) -> Potential:
        if name not in FUNCTIONS:
            raise self.error(node, f"no function is called {name!r}: use {', '.join(FUNCTIONS)}")
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        values = [self.parts(value) if isinstance(value, ast.List) else self.evaluate(value) for value in arguments]
        try:
            match name, values, [keyword.arg for keyword in node.keywords]:
                case "guidance", [Potential() as p, Potential() as q, float(scale)], [] | ["scale"]:
                    return guidance(p, q, scale=scale)
                case "mixture", [list(parts)], []:
                    return mixture(parts)
                case "conjunction", [list(parts), Potential() as base], [] | ["base"]:
                    return conjunction(parts, base)
        except (TypeError, ValueError) as error:
            raise self.error(node, str(error)) from error
        usage = {"guidance": "p, q, scale=1.5", "mixture": "[p, q]", "conjunction": "[p, q], base"}[name]
        raise self.error(node, f"write {name}({usage})")

    def parts(self, node: ast.List) -> list[Potential]:
        parts = [self.evaluate(part) for part in node.elts]
        densities = [part for part in parts if isinstance(part, Potential)]
        if len(densities) < len(parts):
            raise self.error(node, "a list holds densities, not numbers")
        return densities

    def number(self, node: ast.expr) -> float:
        value = self.evaluate(node)
        if not isinstance(value, float):
            raise self.error(node, "only numbers can be negative: use / for a quotient")
        return value

    def error(self, node: ast.expr, message: str) -> ValueError:
        return ValueError(f"in {self.text!r} at position {node.col_offset + 1}: {message}")


def _literal(node: ast.expr) -> float | str | None:
    """Return the number or text that a node stands for, None for anything else."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
