"""Answers that reasoning-gym would evaluate as Python, and what is done instead: nothing that a model wrote is run.

The library calls `eval` on answers of some tasks, to give lists a part of the value, and sympy's `parse_expr`, which is
`eval` too, on those of others. The former are compared as text, where the value is full; the latter go to the library
only where they are formulas.
"""

import ast
from typing import Any

EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
FORMULAS = ("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration")

MAX_FORMULA = 2_000  # characters
MAX_NUMBER, MAX_EXPONENT, MAX_DEPTH = 10**30, 100, 50
FUNCTIONS = frozenset(
    "Abs acos acosh asin asinh atan atanh cos cosh cot coth csc exp ln log sec sin sinh sqrt tan tanh".split()
)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


def same_text(task: str, answer: str, entry: dict[str, Any]) -> bool:
    """Whether an answer to a task of `EVALUATED` has the library's full value: the expected text, or one of several."""
    accepted = (entry.get("metadata") or {}).get("valid_answers") if task == "n_queens" else None
    return answer.strip() in {str(text).strip() for text in accepted or [entry["answer"]]}


def is_formula(answer: str) -> bool:
    """Whether an answer is numbers, names of one's own, the four operations, powers and known functions; no more."""
    text = answer.strip()
    if len(text) > MAX_FORMULA or "_" in text or "\0" in text:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _allowed(tree.body, 0)


def _allowed(node: ast.expr, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    if isinstance(node, ast.Constant):
        return _within(node.value, MAX_NUMBER)
    if isinstance(node, ast.Name):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.UAdd | ast.USub) and _allowed(node.operand, depth + 1)
    if isinstance(node, ast.BinOp):
        if not isinstance(node.op, _OPERATORS) or (isinstance(node.op, ast.Pow) and not _small(node.right)):
            return False
        return _allowed(node.left, depth + 1) and _allowed(node.right, depth + 1)
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        return known and not node.keywords and all(_allowed(argument, depth + 1) for argument in node.args)
    return False


def _small(exponent: ast.expr) -> bool:
    """Whether a power can be computed: no powers in the exponent, no number above `MAX_EXPONENT`."""
    parts = list(ast.walk(exponent))
    large = (isinstance(part, ast.Constant) and not _within(part.value, MAX_EXPONENT) for part in parts)
    return not any(isinstance(part, ast.Pow | ast.Mult) for part in parts) and not any(large)


def _within(value: Any, bound: float) -> bool:
    """Whether it is a real number (no text, no truth value) of at most this size."""
    return type(value) in (int, float) and abs(value) <= bound
