"""Which steps are traced."""

import pytest

from lm.errors import UserError
from lm.train import steps_to_profile
from lm.training.hooks import Profile
from lm.training.loop import Clock
from lm.training.rundir import RunDir
from lm.types import TrainState


def test_the_flag():
    assert steps_to_profile(None, 12) is None
    assert steps_to_profile("10:3", 12) == range(10, 13)
    for wrong in ("10", "10:0", "1:2", "11:3", "ten:3", "-2:3", "10:", "", "²:1", "2:1:1", "9" * 20 + ":1", "2:" + "9" * 20):
        with pytest.raises(UserError, match=f"--profile={wrong} is not FIRST:COUNT"):
            steps_to_profile(wrong, 12)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 12, [("start", 4), ("stop", 7)]),  # steps 5, 6 and 7: from the end of 4 to that of 7
        (4, 12, [("start", 5), ("stop", 7)]),  # gone on from 4: step 5 compiles, 6 and 7 are left
        (5, 12, [("start", 6), ("stop", 7)]),
        (6, 12, []),
        (9, 12, []),
        (0, 5, [("start", 4), ("stop", 5)]),  # stopped within them
    ],
)
def test_a_trace_has_these_steps_and_not_the_one_that_compiles(first, last, expected, monkeypatch, tmp_path):
    events, now = [], [0]
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: events.append(("start", now[0])))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: events.append(("stop", now[0])))
    rundir = RunDir(tmp_path)
    hook = Profile(rundir, Clock(), range(5, 8))
    state = TrainState(*[None] * 7)
    for step in range(first + 1, last + 1):
        now[0] = step
        hook(step, state, {})
    hook.close()
    assert events == expected
    rundir.close()
