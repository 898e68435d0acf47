"""The lifecycle of a sandbox, as a written state machine; only this module changes a state.

                       started                 pause            paused
    creating ────────────▶ running ◀───────────▶ pausing ────────▶ paused
        │                   │   ▲     resumed                       ▲  │
        │ failed            │   └──────────── resumed ── resuming ◀─┴──┤
        ▼                   ▼ kill, expire, died        paused, resume ▼ kill, expire
      killed ◀──────────── killing ◀────────────────────────────────────┘
                 destroyed

`creating`, `pausing`, `resuming` and `killing` are half-way. `creating` is never stored: after a crash, what no record speaks
of is undone. One that is found as `killing`, `pausing` or `resuming` is finished. A pause that cannot be done is undone by
`resumed`, a resume by `paused`. `killed` is the end; its record is kept for a while for those who ask.
"""

import enum

from glovebox import errors


class State(enum.StrEnum):
    """Where a sandbox is in its life."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    KILLING = "killing"
    KILLED = "killed"


class Event(enum.StrEnum):
    """What happens to a sandbox."""

    STARTED = "started"
    FAILED = "failed"
    PAUSE = "pause"
    PAUSED = "paused"
    RESUME = "resume"
    RESUMED = "resumed"
    KILL = "kill"
    DESTROYED = "destroyed"


_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CREATING, Event.STARTED): State.RUNNING,
    (State.CREATING, Event.FAILED): State.KILLED,
    (State.CREATING, Event.KILL): State.KILLING,
    (State.RUNNING, Event.PAUSE): State.PAUSING,
    (State.PAUSING, Event.PAUSED): State.PAUSED,
    (State.PAUSING, Event.RESUMED): State.RUNNING,
    (State.PAUSING, Event.KILL): State.KILLING,
    (State.PAUSED, Event.RESUME): State.RESUMING,
    (State.PAUSED, Event.KILL): State.KILLING,
    (State.RESUMING, Event.RESUMED): State.RUNNING,
    (State.RESUMING, Event.PAUSED): State.PAUSED,
    (State.RESUMING, Event.KILL): State.KILLING,
    (State.RUNNING, Event.KILL): State.KILLING,
    (State.KILLING, Event.DESTROYED): State.KILLED,
}

#: States in which a caller sees the sandbox at all.
VISIBLE = frozenset((State.RUNNING, State.PAUSING, State.PAUSED, State.RESUMING))


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises ConflictError when the event cannot happen in `state`."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise errors.ConflictError(f"a sandbox that is {state} cannot take the event '{event}'") from None
