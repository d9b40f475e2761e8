"""What stood somewhere, and what may stand there, in the words of an error."""

import json
import re
from itertools import islice
from typing import Any

import numpy as np

# What pydantic says of a list of another length.
_LENGTH = re.compile(r"\w+ should have (at \w+ \d+ items?) after validation, not .*")

# What pydantic expected where it says so in words of Python, by the type of its error.
_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a finite number",
    "int_type": "a whole number",
    "model_type": "an object",
    "string_type": "a text",
    "tuple_type": "a list",
}

# Of a list or an object in a sentence, and of a text in one of these.
_SHOWN, _SHOWN_CHARACTERS = 7, 30


def expectation(message: str, *, kind: str) -> str:
    """What pydantic expected, as our sentences go on after "expected", by its message and the type of its error."""
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    expected = message.removeprefix("Input should be ").removeprefix("Value error, ")
    if length := _LENGTH.fullmatch(message):
        expected = length[1]
    return expected[0].lower() + expected[1:]


def shown(value: object, *, most: int = 200) -> str:
    """A value as an error shows it, however much of it there is, and however deep; what JSON has words for in these."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    text = value if isinstance(value, str) else _json(value)
    return text[:most] or "nothing"


def shown_as_json(value: object, *, most: int = 200) -> str:
    """A value that stood in JSON, of which a text has its quotes: where "4" is refused, 4 might not be."""
    return _json(value)[:most]


def type_in_words(value: object) -> str:
    """What a value of JSON is, as an error says that it found something else."""
    if value is None or isinstance(value, bool):
        return shown(value)
    names = {dict: "an object", list: "a list", str: "a text"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "a number")


def _json(value: object, depth: int = 3) -> str:
    """The beginning of a value as JSON, and of lists and objects within it too."""
    if isinstance(value, list):
        items = [_json(item, depth - 1) for item in value[:_SHOWN]] if depth else []
        return f"[{_cut(items, of=value)}]"
    if isinstance(value, dict):
        members = [f"{_json(name)}: {_json(value[name], depth - 1)}" for name in islice(value, _SHOWN)] if depth else []
        return f"{{{_cut(members, of=value)}}}"
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}…"
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _cut(parts: list[str], *, of: list[Any] | dict[str, Any]) -> str:
    return ", ".join([*parts, "…"] if len(of) > len(parts) else parts)
