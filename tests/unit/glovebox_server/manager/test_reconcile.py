import dataclasses
import datetime as dt

import pytest

from glovebox_server.manager import reconcile
from glovebox_server.model import lifecycle, sandbox
from tests.support import manager_fakes as fakes

State, Verdict = lifecycle.State, reconcile.Verdict
BOX = sandbox.Sandbox(
    "i1", "t1", "tpl", None, State.RUNNING, fakes.START, fakes.START + dt.timedelta(seconds=9), {}, {}, "x", instance={}
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.ADOPT),
        ({"end_at": fakes.START}, Verdict.TIMEOUT),
        ({"instance": None}, Verdict.LOST),
        ({"state": State.KILLING}, Verdict.LOST),
        ({"end_at": fakes.START, "auto_pause": True}, Verdict.ADOPT),
        ({"end_at": fakes.START, "state": State.RESUMING}, Verdict.TIMEOUT),
        ({"end_at": fakes.START, "state": State.PAUSING}, Verdict.ADOPT),
        ({"end_at": fakes.START, "state": State.PAUSED}, Verdict.ADOPT),
        ({"instance": None, "state": State.PAUSED}, Verdict.LOST),
    ],
)
def test_verdicts(changes, verdict):
    assert reconcile.judge(dataclasses.replace(BOX, **changes), fakes.START) is verdict
