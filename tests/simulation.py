"""A world of agents, sidecars and one store in virtual time, in which everything that may go wrong does.

One seed is one schedule: no thread, no clock, no randomness but the seed's. The recorder's core, the throttle, the
merge, the store's totals and the reaper are the real ones; only the wire between them fails.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from recording import NOON

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.reaper import Reaper
from runmeter_exporter.recorder.core import RecorderCore
from runmeter_exporter.recorder.totals import Ending
from runmeter_exporter.store import StoreUnavailable
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import RunSnapshot, StoredRun

SECOND = 10**9
DAY = 86_400 * SECOND
LEASE = 30.0
STEP = 5.0
THREADS = (None, "t0", "t1")
MODELS = ("small", "large")
CALLERS = ("lead_agent", "subagent:a", "middleware:b")
STATUSES = ("success", "error", "timeout", "interrupted")


def price(call: Call) -> Usage:
    """Money that is easy to add up: three nano-dollars a token."""
    return call.usage._replace(cost_nanousd=3 * call.usage.total_tokens)


class Store(MemoryRunStore):
    """The one store; sometimes away."""

    away = False

    def __init__(self, world: World) -> None:
        super().__init__(clock=lambda: world.wall)

    def kept(self, run_id: str) -> StoredRun | None:
        """A run as it is stored, with its sources."""
        return self._rows.run(run_id)

    def watch(self):
        """For the reapers."""
        if self.away:
            raise StoreUnavailable("away")
        return super().watch()


@dataclass(eq=False)
class Agent:
    """A process: a recorder's core, the runs it works on, and what it knows it spent."""

    name: str
    core: RecorderCore
    open: list[RunInfo] = field(default_factory=list)
    ended: list[RunInfo] = field(default_factory=list)
    repeatable: dict[RunInfo, list[Call]] = field(default_factory=dict)
    spent: Counter[str] = field(default_factory=Counter)
    inherited: set[RunInfo] = field(default_factory=set)
    """Runs of the parent's that nobody told the child's recorder about."""
    alive: bool = True
    paused: bool = False


class World:
    """All of it; `run` plays a schedule and checks what must hold at every step and at the end."""

    def __init__(self, seed: int, *, steps: int = 60, repeats: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.steps = steps
        self.repeats = repeats
        self.now = 1000.0
        self.wall = NOON
        self.store = Store(self)
        self.agents: list[Agent] = []
        self.network: list[list[RunSnapshot]] = []
        self.reapers = [self._reaper(), self._reaper()]
        self.log: list[str] = []
        self.accepted: dict[tuple[str, str], tuple[int, int]] = {}
        """(run, source) → revision and tokens of the latest snapshot that reached the store and was not refused."""
        self.refused: set[str] = set()
        self.supervised: set[str] = set()
        self.pruned: set[str] = set()
        self.owners_say: dict[str, set[str]] = {}
        self.horizon = 0
        self.spent = 0
        self.settled = 0
        self.started: set[str] = set()
        self.names = 0

    # What may happen

    def run(self) -> None:
        """Play the schedule, let the dust settle, check."""
        self._start_agent()
        actions = [
            (self._begin, 6), (self._call, 14), (self._end, 5), (self._late_call, 2), (self._join, 2),
            (self._reopen, 1), (self._pass_time, 16), (self._deliver, 3), (self._crash, 1), (self._fork, 1),
            (self._pause, 1), (self._resume, 2), (self._start_agent, 1), (self._leave, 1), (self._jump, 1),
            (self._outage, 1), (self._restart_sidecar, 1), (self._supervise, 1), (self._prune, 1),
            (self._repeat, 4 if self.repeats else 0),
        ]  # fmt: skip
        doers, weights = zip(*actions, strict=True)
        for _ in range(self.steps):
            action = self.random.choices(doers, weights)[0]
            self.log.append(action.__name__)
            action()
            self._check_always()
        self._settle_down()
        self._check_finally()

    def _start_agent(self, parent: Agent | None = None) -> Agent:
        self.names += 1
        name = f"source-{self.names}"
        throttle = self.random.choice((0.0, 1.0, 1.0, 10.0))
        core = RecorderCore(name, throttle=throttle, price=price, forked=parent is not None, service="svc")
        agent = Agent(name, core)
        self.agents.append(agent)
        return agent

    def _active(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.alive and not agent.paused]

    def _some(self) -> Agent | None:
        active = self._active()
        return self.random.choice(active) if active else None

    def _begin(self) -> None:
        if agent := self._some():
            self.names += 1
            self._open(agent, f"run-{self.names}", owns=True)

    def _open(self, agent: Agent, run_id: str, *, owns: bool) -> RunInfo:
        thread = THREADS[sum(map(ord, run_id)) % 3]
        run = RunInfo(run_id, self.wall, owns=owns, thread_id=thread, agent="a", service="svc")
        agent.open.append(run)
        agent.core.begin(run, self.now)
        self.started.add(run_id)
        return run

    def _join(self) -> None:
        """A child process receives the context of somebody's run."""
        agent, other = self._some(), self._some()
        if agent and other and other is not agent and other.open:
            self._open(agent, self.random.choice(other.open).run_id, owns=False)

    def _reopen(self) -> None:
        agent, other = self._some(), self._some()
        if agent and other and other.ended:
            self._open(agent, self.random.choice(other.ended).run_id, owns=True)

    def _call(self) -> None:
        if (agent := self._some()) and agent.open:
            self._settle(agent, self.random.choice(agent.open), self.random.choice((1, 1, 2, 5)))

    def _late_call(self) -> None:
        """A stream outlives its run."""
        if (agent := self._some()) and agent.ended:
            self._settle(agent, self.random.choice(agent.ended), 1)

    def _settle(self, agent: Agent, run: RunInfo, count: int) -> None:
        changes = []
        for _ in range(count):
            tokens = self.random.randint(0, 9)
            usage = Usage(input_tokens=tokens, output_tokens=1, calls=1, messages=1)
            model, caller = self.random.choice(MODELS), self.random.choice(CALLERS)
            call = Call("p", model, caller, usage, None, self.wall)
            changes.append(Change(None, call))
            agent.spent[run.run_id] += usage.total_tokens
            self.spent += usage.total_tokens
            agent.repeatable.setdefault(run, []).append(call)
        agent.core.settled(run, changes, self.now)

    def _repeat(self) -> None:
        """A call turns out to be a repeat of another."""
        if (agent := self._some()) and agent.open:
            run = self.random.choice(agent.open)
            if known := agent.repeatable.get(run):
                call = known.pop(self.random.randrange(len(known)))
                agent.spent[run.run_id] -= call.usage.total_tokens
                agent.core.settled(run, [Change(call, None)], self.now)

    def _end(self) -> None:
        if (agent := self._some()) and agent.open:
            self._end_run(agent, self.random.choice(agent.open))

    def _end_run(self, agent: Agent, run: RunInfo) -> None:
        run.status = self.random.choice(STATUSES)
        agent.open.remove(run)
        agent.ended.append(run)
        agent.core.end(run, Ending(self.wall, run.status, None), self.now)
        self._said(agent, run, run.status)

    def _said(self, agent: Agent, run: RunInfo, status: str) -> None:
        # An id opened by two processes has two owners; the store believes the one that wrote first.
        if run.owns and run not in agent.inherited:
            self.owners_say.setdefault(run.run_id, set()).add(status)

    def _pass_time(self) -> None:
        for _ in range(self.random.choice((1, 1, 1, 2, 4, 10))):
            self.now += self.random.choice((0.1, 0.7, STEP))
            self.wall += SECOND
            players = [*((self._write, agent) for agent in self._active()), *((_tick, r) for r in self.reapers)]
            self.random.shuffle(players)
            for play, who in players:
                play(who)

    def _crash(self) -> None:
        """SIGKILL."""
        if agent := self._some():
            agent.alive = False

    def _leave(self) -> None:
        """An orderly exit, with the store there."""
        if (agent := self._some()) and not self.store.away:
            for run in agent.open:
                self._said(agent, run, "interrupted")
            agent.core.leave(self.wall, self.now)
            self._flush(agent)
            agent.alive = False

    def _fork(self) -> None:
        """The child copies the parent's memory, takes up its runs without owning them, and is another source."""
        if parent := self._some():
            child = self._start_agent(parent)
            for run in parent.open:
                mine = copy.copy(run)
                if self.random.random() < 0.5:
                    mine.owns = False
                    child.core.begin(mine, self.now)
                else:
                    child.inherited.add(mine)
                child.open.append(mine)

    def _pause(self) -> None:
        if agent := self._some():
            agent.paused = True

    def _resume(self) -> None:
        for agent in self.agents:
            agent.paused = False

    def _jump(self) -> None:
        self.wall += self.random.choice((-DAY, DAY, -3 * SECOND, 3600 * SECOND))

    def _outage(self) -> None:
        self.store.away = not self.store.away

    def _restart_sidecar(self) -> None:
        self.reapers[self.random.randrange(2)] = self._reaper()

    def _supervise(self) -> None:
        """Somebody ends a run by its id."""
        if self.started and not self.store.away:
            run_id = self.random.choice(sorted(self.started))
            if self.store.end_run(run_id, "timeout", "supervisor"):
                self.supervised.add(run_id)

    def _prune(self) -> None:
        if not self.store.away and self.random.random() < 0.3:
            older = self.wall - self.random.choice((0, 5, 60, 3600)) * SECOND
            there = [run_id for run_id in self.started if self.store.run(run_id) is not None]
            self.store.prune(older)
            self.horizon = max(self.horizon, older)
            self.pruned.update(run_id for run_id in there if self.store.run(run_id) is None)

    def _reaper(self) -> Reaper:
        return Reaper(
            self.store, lease=LEASE, otlp_idle=2 * LEASE, clock=lambda: self.now, interval=STEP, wall=lambda: self.wall
        )

    # The wire

    def _write(self, agent: Agent) -> None:
        """What the writer's thread does when it wakes: one call to the store, with some fate."""
        due = agent.core.next_due()
        if due is None or due > self.now:
            return
        beats, snapshots = agent.core.work(self.now)
        fate = self.random.choices(("fine", "lost", "unanswered", "repeated", "delayed"), (20, 2, 2, 2, 2))[0]
        if self.store.away:
            fate = "lost"
        if beats:
            if fate != "lost":
                self.store.heartbeat(beats)
            if fate in ("fine", "repeated"):
                agent.core.told(self.now, beats)
            else:
                agent.core.failed(self.now, self.now + self.random.choice((0.1, 3.0)))
        elif snapshots:
            if fate in ("fine", "unanswered", "repeated"):
                self._arrive(snapshots)
            if fate == "repeated":
                self._arrive(snapshots)
            if fate == "delayed":
                self.network.append(snapshots)
            if fate in ("fine", "repeated"):
                agent.core.wrote(self.now)
            else:
                agent.core.failed(self.now, self.now + self.random.choice((0.1, 3.0)))

    def _deliver(self) -> None:
        """A write that its agent has given up long ago arrives after all."""
        if self.network and not self.store.away:
            self._arrive(self.network.pop(self.random.randrange(len(self.network))))

    def _arrive(self, snapshots: list[RunSnapshot]) -> None:
        result = self.store.write(snapshots)
        refused = 0
        for snapshot in snapshots:
            key = (snapshot.run_id, snapshot.source)
            stored = self.store.kept(snapshot.run_id)
            known = stored.sources.get(snapshot.source) if stored is not None else None
            if stored is None or known is None or known.revision < snapshot.revision:
                assert snapshot.started_at < self.horizon, f"{key} was refused though nothing as new was pruned"
                self.refused.add(snapshot.run_id)
                refused += 1
                continue
            revision, tokens = self.accepted.get(key, (-1, 0))
            if snapshot.revision > revision:
                if snapshot.usage_by is not None:
                    tokens = sum(usage.total_tokens for usage in snapshot.usage_by.values())
                self.accepted[key] = (snapshot.revision, tokens)
        assert sum(result.refused.values()) == refused, (result, refused)

    def _flush(self, agent: Agent) -> None:
        for _ in range(1000):
            beats, snapshots = agent.core.work(self.now, everything=True)
            if snapshots:
                self._arrive(snapshots)
                agent.core.wrote(self.now)
            elif beats:
                self.store.heartbeat(beats)
                agent.core.told(self.now, beats)
            else:
                return
        raise AssertionError("a flush that never ends")

    # What must hold

    def _check_always(self) -> None:
        settled = self.store.usage()["total_tokens"]
        assert settled >= self.settled, f"settled totals fell from {self.settled} to {settled}"
        self.settled = settled
        if not self.repeats:
            everything = self.store.usage(include_active=True)["total_tokens"]
            assert everything <= self.spent, f"{everything} tokens stored, only {self.spent} spent"

    def _settle_down(self) -> None:
        """The store is back, who lives ends its runs and writes, late writes arrive, the lease passes."""
        self.log.append("settle down")
        self.store.away = False
        self._resume()
        for agent in self.agents:
            if agent.alive:
                agent.core.throttle.retry()
                for run in list(agent.open):
                    self._end_run(agent, run)
                self.now += 10
                self._flush(agent)
                assert len(agent.core) == 0, f"{agent.name} still holds runs"
                assert agent.core.next_due() is None
        while self.network:
            self._deliver()
        for _ in range(int(2 * LEASE / STEP) + 4):
            self.now += STEP
            for reaper in self.reapers:
                reaper.tick()
        self._check_always()

    def _check_finally(self) -> None:
        assert self.store.verify() == []
        settled = self.store.usage()
        assert settled["active_runs"] == 0, "a run stays active for ever"
        assert self.store.usage(include_active=True)["total_tokens"] == settled["total_tokens"]
        assert sum(day["total_tokens"] for day in self.store.usage_daily()) == settled["total_tokens"]
        expected: Counter[str] = Counter()
        for (run_id, _), (_, tokens) in self.accepted.items():
            expected[run_id] += tokens
        if not self.repeats:
            assert settled["total_tokens"] == sum(expected.values())
        for agent in self.agents:
            for run_id, spent in agent.spent.items():
                known = sum(
                    tokens
                    for (written, source), (_, tokens) in self.accepted.items()
                    if written == run_id and source.split("+")[0] == agent.name
                )
                assert known <= spent or self.repeats, f"{run_id} of {agent.name}: {known} stored, {spent} spent"
                if agent.alive and run_id not in self.refused:
                    assert known == spent, f"{run_id} of {agent.name}: {known} stored, {spent} spent"
        for run_id in self.started:
            self._check_run(run_id, expected[run_id])

    def _check_run(self, run_id: str, tokens: int) -> None:
        run = self.store.run(run_id)
        if run is None:
            return
        if run_id in self.pruned:  # opened again under the same id: another row, the totals hold both
            assert run["total_tokens"] <= tokens or self.repeats
        elif self.repeats:
            assert run["total_tokens"] >= tokens
        else:
            assert run["total_tokens"] == tokens, f"{run_id}: {run['total_tokens']} stored, {tokens} written"
        assert run["usage_state"] in ("settled", "lower_bound")
        assert run["ended_at"] >= run["created_at"], "a negative duration"
        assert run["updated_at"] >= run["created_at"]
        owners = [agent for agent in self.agents for info in agent.open + agent.ended if info.run_id == run_id]
        if all(agent.alive for agent in owners) and run_id not in self.supervised | self.refused:
            assert run["usage_state"] == "settled", f"{run_id} is {run['usage_state']} though all its writers lived"
            assert run["status"] in self.owners_say[run_id], f"{run_id} is {run['status']}"


def _tick(reaper: Reaper) -> None:
    reaper.tick()
