"""The shapes of questions and answers as OpenAPI's JSON Schema, made from the types that Python has."""

from __future__ import annotations

import types
import typing
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from runmeter.sink import STATUSES, TERMINAL
from runmeter_exporter.totals import shapes
from runmeter_exporter.web.api import BATCH_LIMIT
from runmeter_exporter.web.query import ID_LIMIT

Schema = dict[str, Any]

_SHAPES = (
    shapes.Counters,
    shapes.UsageLine,
    shapes.Share,
    shapes.CallerTokens,
    shapes.ThreadUsage,
    shapes.GrandUsage,
    shapes.ThreadPage,
    shapes.Run,
    shapes.RunPage,
    shapes.DailyUsage,
)
_SIMPLE: dict[Any, Schema] = {
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "minimum": 0},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}
_SAID = {
    "cost_usd": "Null when nothing in it was priced.",
    "by_model": "A run that used several models is in each; one that used none is `unknown`.",
    "active": "With include_active: the part of the runs that are not closed.",
}


def schemas() -> Schema:
    """Every shape by its name."""
    described = {shape.__name__: _answer(shape) for shape in _SHAPES}
    # A `tag.<key>` for each tag that was grouped by.
    described["DailyUsage"]["additionalProperties"] = {"type": ["string", "null"]}
    for name in ("ThreadUsage", "GrandUsage"):
        described[name]["properties"]["by_status"]["propertyNames"] = {"enum": list(STATUSES)}
    return {
        **described,
        "BatchQuestion": _object(
            {"thread_ids": {"type": "array", "maxItems": BATCH_LIMIT, "items": text()}},
            {"include_active": {"type": "boolean", "default": False}},
        ),
        "RunEnd": _object(
            {"status": {"type": "string", "enum": list(TERMINAL)}},
            {"stop_reason": {**text(), "type": ["string", "null"]}},
        ),
        "Problem": _object(
            {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"type": "string"},
            },
            {"instance": {"type": "string"}},
        ),
    }


def _answer(shape: Any) -> Schema:
    hints = get_type_hints(shape, include_extras=True)
    required = {name: _schema(hint, name) for name, hint in hints.items() if get_origin(hint) is not NotRequired}
    optional = {name: _schema(hint, name) for name, hint in hints.items() if name not in required}
    return {**_object(required, optional), "description": (shape.__doc__ or "").partition("\n")[0]}


def _schema(hint: Any, name: str = "") -> Schema:
    """The JSON Schema of a type."""
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    if is_typeddict(hint):
        # What stands beside a reference is dropped by some generators.
        return {"allOf": [ref(hint.__name__)], "description": _SAID[name]} if name in _SAID else ref(hint.__name__)
    arguments = get_args(hint)
    match get_origin(hint):
        case typing.NotRequired:
            found = _schema(arguments[0], name)
        case typing.Annotated:
            found = {**_schema(arguments[0]), "format": arguments[1]}
        case typing.Literal:
            found = {"type": "string", "enum": list(arguments)}
        case types.UnionType | typing.Union:
            (inner,) = (one for one in arguments if one is not type(None))
            found = _schema(inner)
            found["type"] = [found["type"], "null"]
        case origin if origin is list:
            found = {"type": "array", "items": _schema(arguments[0])}
        case origin if origin is dict:
            found = {"type": "object", "additionalProperties": _schema(arguments[1])}
        case _:
            raise TypeError(f"no JSON Schema is known for {hint}")
    if name in _SAID:
        found["description"] = _SAID[name]
    return found


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def ref(name: str) -> Schema:
    """A reference to a shape."""
    return {"$ref": f"#/components/schemas/{name}"}


def text() -> Schema:
    """An id or name as it may be stored."""
    return {"type": "string", "maxLength": ID_LIMIT}
