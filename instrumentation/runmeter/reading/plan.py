"""Which key of a span's attributes fills which field of its reading; worked out once for each set of keys.

An instrumentation writes the same few sets of keys again and again, so what `call.read` has to look for on a span, and
what it need not, is remembered by scope and keys (a `Shape`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from runmeter.reading import semconv
from runmeter.reading.libraries import DEFAULT, FAMILIES, JAVASCRIPT, LIBRARIES, Library
from runmeter.reading.roles import CALL, KINDS, NO_CALLS, PLAIN, WEAK, Role

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "input": semconv.INPUT,
    "output": semconv.OUTPUT,
    "cache_read": semconv.CACHE_READ,
    "cache_write": semconv.CACHE_WRITE,
    "reasoning": semconv.REASONING,
    "response_id": semconv.RESPONSE,
    "model": semconv.MODEL,
    "provider": semconv.PROVIDER,
    "agent": semconv.AGENT_NAMES,
    "thread": semconv.THREAD,
    "run_id": (semconv.RUN_ID,),
    "source_id": (semconv.SOURCE_ID,),
}
"""Fields that most calls have, in the order of `Shape.usual`, and what each may be called."""
SELDOM: Final[Mapping[str, tuple[str, ...]]] = {
    "caller": (semconv.CALLER,),
    "cost": semconv.COST,
    "amount": semconv.COST_AMOUNT,
    "currency": semconv.COST_CURRENCY,
    "messages": (semconv.MESSAGES,),
    "retries": semconv.RETRIES,
    "run_root": (semconv.RUN_ROOT,),
    "run_status": (semconv.RUN_STATUS,),
    "stop_reason": (semconv.RUN_STOP_REASON,),
    "user": semconv.USER,
    "attempt": (),
    "subagent": (),
    "asked_by": (),
    "span_type": (),
}
"""Fields that most calls have not."""
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {f"kind{index}": (key,) for index, (key, _) in enumerate(KINDS)}
_DETAILS: Final = frozenset(
    {
        *("cache_read", "cache_write", "reasoning", "response_id", "model", "provider", "source_id"),
        *("cost", "amount", "currency", "messages", "retries", "run_status", "stop_reason", "span_type"),
    }
)
"""Fields that say more about a call, and never that there is one."""
_APART: Final = ("input", "output", "cache_read", "cache_write", "reasoning", "response_id")
"""Fields in which the calls of an agent differ."""
_OFTEN: Final = frozenset({"caller", "user"})
"""Those of `SELDOM` that they have in common."""

EMPTY: Final = (None, "")
"""Values that say nothing."""
_SHAPES: Final = 128
"""Shapes remembered of a scope."""
_SHAPE_KEYS: Final = 64
"""Keys of a span whose shape is remembered: larger sets are lists of messages, hardly ever the same."""


class Shape:
    """How to read the spans of one scope that have one set of keys."""

    __slots__ = ("_asked", "_order", "_rivals", "apart", "input_keys", "kinds", "requested", "seldom_keys", "words")

    def __init__(self, keys: Mapping[str, Sequence[str]]) -> None:
        """`keys`: those present of each field, the preferred one first."""
        self.kinds = tuple((keys[name][0], table) for name, (_, table) in zip(_KINDS, KINDS, strict=True) if keys[name])
        """(key, what its values mean) of the keys that say what the span is, in the order of belief."""
        self.input_keys = tuple(keys["input"])
        # No generator that is left before its end: what a signal handler raises while it is closed reaches nobody.
        requested = [key for key in keys["model"] if key in semconv.REQUESTED]
        self.requested = requested[0] if requested else None
        """The key that says which model was asked for."""
        self.seldom_keys = tuple((name, tuple(keys[name])) for name in SELDOM if keys[name])
        usual = [keys[name] for name in USUAL]
        self._rivals = tuple((place, names) for place, names in enumerate(usual) if len(names) > 1)
        self._asked = tuple(names[0] for names in usual if names)
        single = all(len(keys[name]) < 2 for name in _APART)
        often = _OFTEN.issuperset(name for name, _ in self.seldom_keys)
        words = [key for name in keys if name not in _APART for key in keys[name]] if single and often else []
        self.words: Callable[[Mapping[str, Any]], Any] | None = itemgetter(*words) if words else None
        """All that such a span says and that many calls have in common; None where spans say more, or a count twice."""
        self.apart = tuple((keys[name] or USUAL[name])[0] for name in _APART)
        """The keys of what they have not in common."""
        places = iter(range(len(self._asked)))
        self._order = itemgetter(*(next(places) if names else -1 for names in usual))

    def usual(self, attributes: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of `USUAL`, in its order; None or empty where nothing is said."""
        # The preferred ones are fetched and put in order in C; hardly ever is one of them empty that has a rival.
        found: tuple[Any, ...] = self._order([*map(attributes.__getitem__, self._asked), None])
        for place, names in self._rivals:
            if found[place] in EMPTY:
                found = (*found[:place], first(attributes, names), *found[place + 1 :])
        return found

    def input_key(self, attributes: Mapping[str, Any]) -> str | None:
        """The key that says the input."""
        return next((key for key in self.input_keys if attributes[key] not in EMPTY), None)

    def seldom(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of `SELDOM`."""
        found = {name: first(attributes, names) for name, names in self.seldom_keys}
        return {name: value for name, value in found.items() if value is not None}


def first(attributes: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value that says something, or None."""
    for name in names:
        value = attributes[name]
        if value not in EMPTY:
            return value
    return None


class Plan:
    """How to read one scope: every key that means something there."""

    def __init__(self, dialect: Library) -> None:
        self.dialect = dialect
        self.by_name = bool(dialect.names or dialect.failed_names)
        """A span may be a call there though no attribute says so."""
        self.peculiar = bool(
            dialect.answer_key or dialect.beginnings or dialect.provider or dialect.model_has_provider
        )
        """There is more to its calls than their attributes say."""
        self.repeats = not any(
            (self.peculiar, dialect.texts, dialect.measured, dialect.makes_up, dialect.stream_log, dialect.no_calls)
        )
        """What its calls are follows from their words, whatever their counts."""
        self._fields: dict[str, tuple[str, int]] = {}
        for name, own in {**USUAL, **SELDOM, **_KINDS}.items():
            for rank, key in enumerate((*dialect.first.get(name, ()), *own, *dialect.keys.get(name, ()))):
                self._fields.setdefault(key, (name, rank))
        if dialect.stream_log:
            self._fields["logfire.span_type"] = ("span_type", 0)
        deciding = {key for key, (name, _) in self._fields.items() if name not in _DETAILS}
        deciding.update(key for keys in dialect.keys.values() for key in keys)
        self.deciding = frozenset(deciding)
        """Without any of these a span is a plain one."""
        self.deciding_below = self.deciding - {semconv.RUN_ID, semconv.CONVERSATION_ID, semconv.USER_ID}
        """The same where an explicit run says what its spans are stamped with."""
        self._shapes: dict[tuple[Any, ...], Shape] = {}

    def shape(self, attributes: Mapping[str, Any]) -> Shape:
        """How to read a span with these attributes."""
        if len(attributes) > _SHAPE_KEYS:
            return self._shape(attributes)
        names = tuple(attributes)
        known = self._shapes.get(names)
        if known is None:
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            known = self._shapes[names] = self._shape(attributes)
        return known

    def role(self, shape: Shape, usual: Sequence[Any], attributes: Mapping[str, Any], name: str, failed: bool) -> Role:
        """What a span is: by its own word, by its name, or by having usage."""
        kinds = shape.kinds
        unheard = False
        if kinds:
            if len(kinds) > 1 and attributes.get(semconv.OPERATION_NAME) in NO_CALLS:
                return PLAIN
            for key, table in kinds:
                said = attributes[key]
                if type(said) is str:
                    role = table.get(said)
                    if role is not None:
                        return role if role is not CALL or self._calls(usual, name) else PLAIN
                    if said and key == semconv.OPERATION_NAME:
                        unheard = said not in NO_CALLS
                        if not unheard:
                            return PLAIN
                        break
        if self.by_name and not unheard:
            for start, role in self.dialect.names:
                if name.startswith(start):
                    return role
            if failed:
                for start, role in self.dialect.failed_names:
                    if name.startswith(start):
                        return role
        return PLAIN if usual[0] in EMPTY and usual[1] in EMPTY else WEAK

    def _calls(self, usual: Sequence[Any], name: str) -> bool:
        no_calls = self.dialect.no_calls
        return no_calls is None or not no_calls.search(name) or not (usual[0] in EMPTY and usual[1] in EMPTY)

    def _shape(self, attributes: Mapping[str, Any]) -> Shape:
        keys: dict[str, list[tuple[int, str]]] = {name: [] for name in (*USUAL, *SELDOM, *_KINDS)}
        for key in attributes.keys() & self._fields.keys():
            name, rank = self._fields[key]
            keys[name].append((rank, key))
        return Shape({name: [key for _, key in sorted(found)] for name, found in keys.items()})


_DEFAULT: Final = Plan(DEFAULT)
_PLANS: Final = {scope: Plan(dialect) for scope, dialect in LIBRARIES.items()}
_met: dict[str, Plan] = {}
_MOST_MET: Final = 1024
_FAMILIES: Final = tuple((family, Plan(dialect)) for family, dialect in FAMILIES)


def plan_of(scope: str) -> Plan:
    """How to read the spans of this instrumentation scope."""
    return _met.get(scope) or _meet(scope)


def _meet(scope: str) -> Plan:
    """Of a scope not met before."""
    if len(_met) >= _MOST_MET:
        _met.clear()
    plan = _met[scope] = _PLANS.get(scope) or _relative(scope)
    return plan


def _relative(scope: str) -> Plan:
    """Of a scope that is in no line of its own: JavaScript's name of one that is, or a family's."""
    javascript, python = JAVASCRIPT
    if scope.startswith(javascript):
        scope = python + scope.removeprefix(javascript).replace("-", "_")
        if scope in _PLANS:
            return _PLANS[scope]
    return next((plan for family, plan in _FAMILIES if scope.startswith(family)), _DEFAULT)


def is_plain(scope: str, attributes: Mapping[str, Any] | None, *, below_a_run: bool = False) -> bool:
    """True where `read` would find nothing but ancestry, in a fraction of the time.

    Pass the plainest mapping at hand: a `dict` answers in C. With `below_a_run` the run id, thread and user that door 1
    stamps on every span of an explicit run do not count as news.
    """
    plan = _met.get(scope) or _meet(scope)
    if plan.by_name:
        return False
    if not attributes:
        return True
    return attributes.keys().isdisjoint(plan.deciding_below if below_a_run else plan.deciding)


def role_said(attributes: Mapping[str, Any]) -> Role | None:
    """What a span says in so many words that it is, or is going to be; None where it does not."""
    for key, table in KINDS:
        said = attributes.get(key)
        if type(said) is str and said in table:
            return table[said]
    return None
