"""What is kept through restarts, and what is said where nothing is whole; e2e/test_resume.py has whole runs."""

import jax.numpy as jnp
import pytest

from lm import config
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.types import TrainState

RUN = config.Run(config.Model(8, 8))


def state(step):
    zero = jnp.int32(0)
    return TrainState(jnp.int32(step), {"w": jnp.ones(4)}, (), None, zero, zero, jnp.zeros((2, 2), jnp.uint32))


def save(workdir, losses, keep=1):
    """As a process does that dies afterwards."""
    saved = Checkpoints(workdir, config.Checkpoint(keep=keep), RUN, b"tokenizer")
    for step, loss in losses.items():
        saved.save(state(step), {"loss": loss})
        saved.wait()
    saved.close()


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_the_best_is_kept_through_a_restart(tmp_path):
    save(tmp_path, {1: 2.0, 2: 1.0, 3: 3.0})
    assert steps(tmp_path) == [2, 3]
    save(tmp_path, {4: 2.5, 5: 2.4})
    assert steps(tmp_path) == [2, 5]
    save(tmp_path, {6: 0.5, 7: 0.9})
    assert steps(tmp_path) == [6, 7]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, bad):
    save(tmp_path, {1: 3.0, 2: 1.0, 3: bad, 4: bad, 5: bad}, keep=2)
    assert steps(tmp_path) == [2, 4, 5]
    save(tmp_path, {6: bad, 7: 2.0}, keep=2)
    assert steps(tmp_path) == [2, 6, 7], "after a restart as well"
    save(tmp_path, {8: 0.5, 9: bad, 10: bad}, keep=2)
    assert steps(tmp_path) == [8, 9, 10]


def test_where_no_loss_is_finite_none_is_the_best(tmp_path):
    save(tmp_path, {1: NAN, 2: INF, 3: NAN, 4: -INF}, keep=2)
    assert steps(tmp_path) == [3, 4]
    save(tmp_path, {5: 7.0, 6: NAN, 7: NAN}, keep=2)
    assert steps(tmp_path) == [5, 6, 7]


def test_a_nan_that_an_older_version_saved_is_not_the_best(tmp_path, monkeypatch):
    """It stands in the checkpoint's metrics, from where Orbax reads it after a restart."""
    with monkeypatch.context() as older:
        older.setattr("lm.checkpoint.math.isfinite", lambda x: True)
        save(tmp_path, {1: 1.0, 2: NAN}, keep=2)
        assert "NaN" in (tmp_path / "checkpoints/2/metrics/metrics").read_text()
    save(tmp_path, {3: 2.0, 4: 3.0}, keep=1)
    assert steps(tmp_path) == [1, 4]


def test_where_none_is_whole_nothing_is_moved_and_nothing_begins_anew(tmp_path):
    save(tmp_path, {1: 2.0, 2: 1.0}, keep=2)
    for step in (1, 2):
        (tmp_path / f"checkpoints/{step}/SHA256.json").unlink()
    again = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    with pytest.raises(UserError, match=r"has no whole checkpoint \(2: SHA256.json is missing.*; 1: .*another --workdir"):
        again.latest_whole()
    again.close()
    assert steps(tmp_path) == [1, 2] and not (tmp_path / "damaged").exists()


def test_a_new_run_has_none(tmp_path):
    new = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    assert new.latest_whole() is None
    new.close()
