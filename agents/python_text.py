"""Python values in text, as rl_zoo3's files hold them: read by their form, never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

_ALLOWED = "numbers, texts, lists, {...}, dict(name=value) and names of classes"


def read_python(text: str) -> Any:
    """Return the plain value that a text stands for, fit for YAML.

    Lists and tuples become lists, ``dict(...)`` and ``{...}`` mappings, names such as ``nn.ReLU``
    texts. Nothing is looked up and nothing is called.

    Args:
        text: Such as ``"dict(net_arch=[64, 64], activation_fn=nn.ReLU)"``.

    Raises:
        ValueError: If it is anything else; the part is named.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _value(tree)
    except (RecursionError, MemoryError) as error:
        raise ValueError("is nested too deeply") from error
    except SyntaxError as error:
        raise ValueError(f"is no Python value: {error.msg}") from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(
            op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)
        ):
            return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return _mapping([key and _value(key) for key in keys], values, node)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _mapping([key.arg for key in keywords], [key.value for key in keywords], node)
        case ast.Name() | ast.Attribute():
            return _dotted(node)
    raise ValueError(f"holds {ast.unparse(node)!r}; read are only {_ALLOWED}")


def _mapping(keys: Sequence[Any], values: Sequence[ast.expr], node: ast.expr) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in keys):  # `**other` has the key None
        raise ValueError(f"holds {ast.unparse(node)!r}, whose keys are not all words")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"gives {twice[0]!r} twice")
    return {key: _value(value) for key, value in zip(keys, values, strict=True)}


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            return f"{_dotted(owner)}.{name}"
    raise ValueError(f"holds {ast.unparse(node)!r}; read are only {_ALLOWED}")
