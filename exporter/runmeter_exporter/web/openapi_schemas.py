"""The shapes of questions and answers, as the JSON Schema that OpenAPI 3.1 refers to."""

from __future__ import annotations

from typing import Any

from runmeter.sink import STATUSES, TERMINAL
from runmeter_exporter.web.api import BATCH_LIMIT, DAILY_GROUPS, TAG_PREFIX
from runmeter_exporter.web.query import ID_LIMIT

Schema = dict[str, Any]

_USAGE_STATES = ("active", "closing", "settled", "lower_bound")
_COUNTS = (
    "total_tokens",
    "total_input_tokens",
    "total_output_tokens",
    "llm_call_count",
    "llm_call_failures",
    "calls_without_usage",
    "message_count",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "unpriced_tokens",
)


def schemas() -> Schema:
    """Every shape by its name."""
    count: Schema = {"type": "integer", "minimum": 0}
    counters: Schema = dict.fromkeys(_COUNTS, count)
    counters["cost_usd"] = {
        "type": ["number", "null"],
        "minimum": 0,
        "description": "Null when nothing in it was priced.",
    }
    nullable: Schema = {"type": ["string", "null"]}
    time: Schema = {"type": "string", "format": "date-time"}
    time_or_null: Schema = {"type": ["string", "null"], "format": "date-time"}
    share = _object({"tokens": count, "runs": count})
    text_value: Schema = {"type": "string"}
    usage = {
        "type": "array",
        "items": _object({**dict.fromkeys(("provider", "model", "caller"), text_value), **counters}),
    }
    totals: Schema = {
        **counters,
        "total_runs": count,
        "by_model": {"type": "object", "additionalProperties": share},
        "by_caller": _object({"lead_agent": count, "subagent": count, "middleware": count}),
        "include_active": {"type": "boolean"},
        "by_status": {"type": "object", "additionalProperties": share, "propertyNames": {"enum": list(STATUSES)}},
        "active_runs": count,
        "lower_bound_runs": count,
        "updated_at": time_or_null,
        "usage": usage,
    }
    active: Schema = {"active": {**_object(counters), "description": "The part of active runs, with include_active."}}
    return {
        "ThreadUsage": _object({"thread_id": {"type": "string"}, **totals}, active),
        "GrandUsage": _object({**totals, "unthreaded_runs": count}, active),
        "ThreadPage": _object({"threads": {"type": "array", "items": ref("ThreadUsage")}, "next_cursor": nullable}),
        "Run": _object(
            {
                "run_id": {"type": "string"},
                **dict.fromkeys(("thread_id", "service", "agent", "user_id"), nullable),
                "tags": {"type": "object", "additionalProperties": {"type": "string"}},
                "status": {"enum": list(STATUSES)},
                "usage_state": {"enum": list(_USAGE_STATES)},
                "model_name": nullable,
                **counters,
                "lead_agent_tokens": count,
                "subagent_tokens": count,
                "middleware_tokens": count,
                "set_aside": {"type": "object", "additionalProperties": count},
                "stop_reason": nullable,
                "created_at": time,
                "updated_at": time,
                "ended_at": time_or_null,
                "usage": usage,
            }
        ),
        "RunPage": _object({"runs": {"type": "array", "items": ref("Run")}, "next_cursor": nullable}),
        "DailyUsage": {
            "type": "object",
            "properties": {**dict.fromkeys(DAILY_GROUPS, nullable), **counters},
            "patternProperties": {f"^{TAG_PREFIX.replace('.', '[.]')}": nullable},
            "additionalProperties": False,
            "required": list(counters),
        },
        "BatchQuestion": _object(
            {"thread_ids": {"type": "array", "maxItems": BATCH_LIMIT, "items": text()}},
            {"include_active": {"type": "boolean", "default": False}},
        ),
        "RunEnd": _object(
            {"status": {"enum": list(TERMINAL)}}, {"stop_reason": {**text(), "type": ["string", "null"]}}
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
    return {"type": "string", "maxLength": ID_LIMIT, "pattern": "^[^\\u0000]*$"}
