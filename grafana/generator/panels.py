"""The few kinds of panels and queries that the dashboards in this folder are made of."""

from __future__ import annotations

from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
JOB = 'job=~"$job"'
MONEY, PER_HOUR = "currencyUSD", "suffix: USD/h"

Panel = dict[str, Any]


def gauge(name: str, matchers: str = "") -> str:
    """A gauge once per store, not once per replica."""
    return f"max without (instance, pod) ({name}{{{JOB}{matchers}}})"


def counter(name: str, matchers: str = "") -> str:
    """A counter's recorded series, once per store."""
    return f"store:{name}{{{JOB}{matchers}}}"


def rate(name: str, by: str = "", matchers: str = "", window: str = "$__rate_interval") -> str:
    """What a counter gains in a second."""
    return f"sum{by and f' by ({by})'} (rate({counter(name, matchers)}[{window}]))"


def gained(name: str, by: str = "", matchers: str = "") -> str:
    """What a counter gained in the dashboard's time range."""
    return f"sum{by and f' by ({by})'} (increase({counter(name, matchers)}[$__range]))"


def panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    width: int = 12,
    height: int = 8,
    options: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    instant: bool = False,
    **more: Any,
) -> Panel:
    """One panel; `queries` are (PromQL, legend)."""
    targets = []
    for ref, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        target = {"refId": ref, "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        target |= (
            {"instant": True, "range": False, "format": "table" if kind == "table" else "time_series"}
            if instant
            else {}
        )
        targets.append(target)
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "targets": targets,
        "options": options or {},
        "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": []},
        **more,
    }


def stat(title: str, description: str, unit: str, expr: str, *, legend: str = "", **defaults: Any) -> Panel:
    """One number of the moment."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "graphMode": "none",
        "colorMode": "value",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
    }
    return panel(
        "stat",
        title,
        description,
        unit,
        (expr, legend),
        width=4,
        height=4,
        options=options,
        defaults=defaults,
        instant=True,
    )


def graph(
    title: str, description: str, unit: str, *queries: tuple[str, str], stacked: bool = True, **more: Any
) -> Panel:
    """Numbers over time; stacked where the sum means something."""
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    return panel(
        "timeseries", title, description, unit, *queries, options=options, defaults={"min": 0, "custom": custom}, **more
    )


def bars(title: str, description: str, unit: str, *queries: tuple[str, str], **more: Any) -> Panel:
    """Sums over the whole time range, side by side."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "color",
        "showUnfilled": True,
    }
    return panel(
        "bargauge", title, description, unit, *queries, options=options, defaults={"min": 0}, instant=True, **more
    )


def table(
    title: str,
    description: str,
    key: str,
    hidden: tuple[str, ...],
    columns: dict[str, tuple[str, str, str]],
    **more: Any,
) -> Panel:
    """Rows joined on the label `key`; `columns` gives each query its heading and unit, the first one sorts."""
    names, units, queries = {}, [], []
    for ref, (expr, heading, unit) in columns.items():
        names[f"Value #{ref}"] = heading
        units.append({"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]})
        queries.append((expr, ""))
    made = panel("table", title, description, "short", *queries, instant=True, **more)
    made["fieldConfig"]["overrides"] = units
    made["options"] = {"showHeader": True, "sortBy": [{"displayName": next(iter(columns.values()))[1], "desc": True}]}
    made["transformations"] = [
        {"id": "joinByField", "options": {"byField": key, "mode": "outer"}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {
                    name: True
                    for label in hidden
                    for name in (label, *(f"{label} {number}" for number in range(1, len(columns) + 1)))
                },
                "renameByName": names,
            },
        },
    ]
    return made


def dashboard(uid: str, title: str, description: str, refresh: str, since: str, panels: list[Panel]) -> dict[str, Any]:
    """Lays the panels out in rows of 24 and gives them ids by their place."""
    x = y = row_height = 0
    for number, made in enumerate(panels, start=1):
        place = made["gridPos"]
        if x + place["w"] > 24:
            x, y, row_height = 0, y + row_height, 0
        place["x"], place["y"] = x, y
        x, row_height = x + place["w"], max(row_height, place["h"])
        made["id"] = number
    others = [
        {"type": "dashboards", "title": "runmeter", "tags": ["runmeter"], "asDropdown": False, "includeVars": True}
    ]
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["runmeter"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": refresh,
        "schemaVersion": 39,
        "time": {"from": since, "to": "now"},
        "links": [
            {"icon": "", "tooltip": "", "targetBlank": False, "keepTime": True, "url": "", **link} for link in others
        ],
        "templating": {
            "list": [
                {
                    "type": "datasource",
                    "name": "datasource",
                    "label": "Prometheus",
                    "query": "prometheus",
                    "hide": 0,
                    "refresh": 1,
                    "regex": "",
                    "multi": False,
                    "includeAll": False,
                    "current": {},
                },
                {
                    "type": "query",
                    "name": "job",
                    "label": "Store (scrape job)",
                    "datasource": SOURCE,
                    "query": {"query": "label_values(runmeter_store_up, job)", "refId": "job"},
                    "hide": 0,
                    "refresh": 2,
                    "regex": "",
                    "sort": 1,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".+",
                    "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "panels": panels,
    }
