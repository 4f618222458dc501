"""Saving, retention, and recovery from damaged checkpoints; e2e/test_resume.py resumes complete runs."""

import errno
import json
import shutil

import jax.numpy as jnp
import pytest

from lm import config, saved
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.types import TrainState

RUN = config.Run(config.Model(8, 8))


def state(step):
    zero = jnp.int32(0)
    return TrainState(jnp.int32(step), {"w": jnp.ones(4)}, (), None, zero, zero, jnp.zeros((2, 2), jnp.uint32))


def save(workdir, losses, keep=1):
    """Saves a step for each loss in a new `Checkpoints`, as a process does that is then restarted."""
    writer = Checkpoints(workdir, config.Checkpoint(keep=keep), RUN, b"tokenizer")
    for step, loss in losses.items():
        writer.save(state(step), {"loss": loss})
        writer.wait()
    writer.close()


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with the steps 1, 2 and 3, of which 2 is the best."""
    workdir = tmp_path_factory.mktemp("three")
    save(workdir, {1: 2.0, 2: 1.0, 3: 3.0}, keep=3)
    return workdir


@pytest.fixture
def begun(three, tmp_path):
    return shutil.copytree(three, tmp_path / "run")


def resumed(workdir):
    """The step that a restart finds, and the step in its state; then saves step 20."""
    again = Checkpoints(workdir, config.Checkpoint(keep=3), RUN, b"tokenizer")
    try:
        step = again.latest_intact()
        found = int(again.restore(step, state(0)).step) if step else None
        assert again.saved_run(step)[0] == RUN if step else True
        again.save(state(20), {"loss": 5.0})
        again.wait()
        return step, found
    finally:
        again.close()


def test_the_best_is_kept_through_a_restart(tmp_path):
    save(tmp_path, {1: 2.0, 2: 1.0, 3: 3.0})
    assert steps(tmp_path) == [2, 3]
    save(tmp_path, {4: 2.5, 5: 2.4})
    assert steps(tmp_path) == [2, 5]
    save(tmp_path, {6: 0.5, 7: 0.9})
    assert steps(tmp_path) == [6, 7]


def test_moments_that_an_older_version_kept_in_bfloat16_are_refused_by_name(tmp_path):
    """They are not cast, since the lost precision cannot be recovered."""
    writer = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    moments = lambda dtype: state(1).replace(opt_state={"mu": jnp.ones(4, dtype)})
    writer.save(moments(jnp.bfloat16))
    writer.wait()
    with pytest.raises(UserError, match=r"opt_state/mu: saved bfloat16\[4\], wanted float32\[4\].*another --workdir"):
        writer.restore(1, moments(jnp.float32))
    writer.close()


def test_progress_comes_back_and_an_older_checkpoint_has_none(tmp_path):
    writer = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    writer.save(state(1), progress={"rows": 2**40, "losses": [0.1, NAN]})
    writer.wait()
    writer.close()
    again = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    assert again.saved_progress(1) == {"rows": 2**40, "losses": [0.1, "nan"]}, "numbers that JSON lacks are strings"
    (tmp_path / "checkpoints/1/progress").rename(tmp_path / "progress")
    assert again.saved_progress(1) == {}
    again.close()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, bad):
    save(tmp_path, {1: 3.0, 2: 1.0, 3: bad, 4: bad, 5: bad}, keep=2)
    assert steps(tmp_path) == [2, 4, 5]
    save(tmp_path, {6: bad, 7: 2.0}, keep=2)
    assert steps(tmp_path) == [2, 6, 7], "after a restart as well"
    save(tmp_path, {8: 0.5, 9: bad, 10: bad}, keep=2)
    assert steps(tmp_path) == [8, 9, 10]


def test_without_a_finite_loss_no_checkpoint_is_the_best(tmp_path):
    save(tmp_path, {1: NAN, 2: INF, 3: NAN, 4: -INF}, keep=2)
    assert steps(tmp_path) == [3, 4]
    save(tmp_path, {5: 7.0, 6: NAN, 7: NAN}, keep=2)
    assert steps(tmp_path) == [5, 6, 7]


def test_a_nan_that_an_older_version_saved_is_not_the_best(tmp_path, monkeypatch):
    """Orbax reads it from the checkpoint's metrics after a restart."""
    with monkeypatch.context() as older:
        older.setattr("lm.checkpoint.math.isfinite", lambda x: True)
        save(tmp_path, {1: 1.0, 2: NAN}, keep=2)
        assert "NaN" in (tmp_path / "checkpoints/2/metrics/metrics").read_text()
    save(tmp_path, {3: 2.0, 4: 3.0}, keep=1)
    assert steps(tmp_path) == [1, 4]


def test_if_no_step_is_intact_nothing_is_moved_or_restarted(tmp_path):
    save(tmp_path, {1: 2.0, 2: 1.0}, keep=2)
    for step in (1, 2):
        (tmp_path / f"checkpoints/{step}/SHA256.json").unlink()
    again = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    with pytest.raises(UserError, match=r"has no intact checkpoint \(2: SHA256.json is missing.*; 1: .*another --workdir"):
        again.latest_intact()
    again.close()
    assert steps(tmp_path) == [1, 2] and not (tmp_path / "damaged").exists()


def test_a_new_run_has_none(tmp_path):
    new = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    assert new.latest_intact() is None
    new.close()


def test_arrays_written_to_another_path_are_an_error(tmp_path):
    """TensorStore takes a backslash as a separator. `RunDir` refuses such folders; this catches what it does not know of."""
    writer = Checkpoints(tmp_path / "a\\b", config.Checkpoint(), RUN, b"tokenizer")
    writer.save(state(1))
    with pytest.raises(UserError, match="cannot save in .*incomplete: the arrays are not among its files"):
        writer.wait()
    writer.wait()  # the error is raised once
    writer.close()
    assert steps(tmp_path / "a\\b") == []


def test_a_save_that_ends_without_its_directory_is_an_error(tmp_path):
    writer = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")
    writer.save(state(1))
    writer._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="step 1 was saved without an error, but is not in"):
        writer.wait()
    writer.close()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EFBIG, "File too large"), r"a file exceeds this shell's size limit; raise it \(ulimit -f\)"),
        (ValueError("UNKNOWN: write failed: File too large"), "a file exceeds this shell's size limit"),
        (OSError(errno.ENOSPC, "No space left on device"), "no disk space in"),
        (ValueError("PERMISSION_DENIED: no"), "PERMISSION_DENIED: no; fix that"),
    ],
)
def test_errors_of_the_file_system_are_user_errors(tmp_path, monkeypatch, error, cause):
    writer = Checkpoints(tmp_path, config.Checkpoint(), RUN, b"tokenizer")

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as failing, pytest.raises(UserError, match=cause):
        failing.setattr(writer._manager, "wait_until_finished", fails)
        writer.wait()
    writer.close()


def test_a_renamed_step_is_named_and_put_aside(begun):
    (begun / "checkpoints/3").rename(begun / "checkpoints/12")
    with pytest.warns(UserWarning, match="checkpoints/12 is damaged: it is step 3, and was renamed. Moved to .*damaged/12"):
        assert resumed(begun) == (2, 2)
    assert (begun / "damaged/12/state").is_dir()


def test_an_older_checkpoint_that_does_not_name_its_step(begun):
    listing = begun / "checkpoints/3/SHA256.json"
    listing.write_text(json.dumps(json.loads(listing.read_text())["files"]))
    assert resumed(begun) == (3, 3)
    (begun / "checkpoints/20").rename(begun / "checkpoints/21")
    old = begun / "checkpoints/21/SHA256.json"
    old.write_text(json.dumps(json.loads(old.read_text())["files"]))
    with pytest.raises(UserError, match="checkpoints/21 is step 20, and was renamed"):
        resumed(begun)


STRAY = {
    "beside the steps": lambda c: (c / ".DS_Store").write_bytes(b"x"),
    "a folder": lambda c: (c / "notes").mkdir(),
    "odd numbers": lambda c: [(c / name).mkdir() for name in ("007", "²", "１２")],
    "in a step": lambda c: (c / "3/.DS_Store").write_bytes(b"x"),
    "a folder in a step": lambda c: (c / "3/notes").mkdir(),
    "among the arrays": lambda c: (c / "3/state/.DS_Store").write_bytes(b"x"),
}


@pytest.mark.parametrize("stray", STRAY)
def test_stray_files_among_checkpoints_are_ignored(begun, stray):
    STRAY[stray](begun / "checkpoints")
    assert resumed(begun) == (3, 3)
    assert saved.open(begun).tokenizer_bytes() == b"tokenizer"


def emptied(path):
    path.unlink()
    path.mkdir()


SIDE = {  # damage -> (how it is done, name of what is moved to damaged/)
    "no text": (lambda c: (c / "2/metrics/metrics").write_bytes(b"\xff"), "2.metrics"),
    "a bare number": (lambda c: (c / "2/metrics/metrics").write_bytes(b"3"), "2.metrics"),
    "no loss": (lambda c: (c / "2/metrics/metrics").write_bytes(b'{"loss": "low"}'), "2.metrics"),
    "cut short": (lambda c: (c / "3/metrics/metrics").write_bytes(b'{"lo'), "3.metrics"),
    "empty": (lambda c: (c / "2/metrics/metrics").write_bytes(b""), "2.metrics"),
    "another loss": (lambda c: (c / "3/metrics/metrics").write_bytes(b'{"loss": 0.5}'), "3.metrics"),
    "a directory": (lambda c: emptied(c / "2/metrics/metrics"), "2.metrics"),
    "about the items": (lambda c: (c / "3/_CHECKPOINT_METADATA").write_bytes(b"3"), "3.metadata"),
    "a file in place of a step": (lambda c: (c / "99").write_bytes(b""), "99"),
}


@pytest.mark.parametrize("case", SIDE)
def test_damaged_metrics_do_not_lose_the_step(begun, case):
    harm, aside = SIDE[case]
    harm(begun / "checkpoints")
    with pytest.warns(UserWarning, match=f"is damaged; moved to .*damaged/{aside}; the run continues without it") as said:
        assert resumed(begun) == (3, 3)
    assert len(said) == 1 and (begun / "damaged" / aside).exists()


def test_a_loss_that_was_changed_does_not_cost_the_best_checkpoint(begun):
    (begun / "checkpoints/1/metrics/metrics").write_bytes(b'{"loss": 0.5}')
    with pytest.warns(UserWarning, match="1/metrics is damaged"):
        save(begun, {4: 4.0})
    assert steps(begun) == [2, 4]


@pytest.mark.parametrize("listing", [b"[]", b"3", b"\xff", b"{}", b'{"files": 3}', b'{"a": 1}', b"[" * 100_000])
def test_a_damaged_list_of_digests_affects_its_step_only(begun, listing):
    (begun / "checkpoints/3/SHA256.json").write_bytes(listing)
    with pytest.warns(UserWarning, match="checkpoints/3 is damaged: .*using the step before"):
        assert resumed(begun) == (2, 2)


def test_a_file_in_place_of_all_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_bytes(b"x")
    with pytest.warns(UserWarning, match="checkpoints is damaged; moved to"):
        assert resumed(tmp_path) == (None, None)
    assert steps(tmp_path) == [20] and (tmp_path / "damaged/checkpoints").read_bytes() == b"x"


def test_putting_aside_overwrites_nothing(tmp_path):
    from lm import atomic

    (tmp_path / "damaged").write_text("a file of that name")
    for content in ("a", "b", "c"):
        (tmp_path / "x").write_text(content)
        atomic.put_aside(tmp_path / "x", tmp_path / "damaged")
    assert [(tmp_path / "damaged" / name).read_text() for name in ("x", "x.2", "x.3")] == ["a", "b", "c"]
    assert (tmp_path / "damaged.2" / "damaged").read_text() == "a file of that name"


def test_a_long_error_still_names_the_file_size_limit(tmp_path):
    """TensorStore's message has the cause after hundreds of characters of paths."""
    from lm.checkpoint import _save_error

    path = "/".join(["a-long-name"] * 40)
    error = ValueError(f'OUT_OF_RANGE: Error writing "w/0" at "{path}": Failed to write 9 bytes to file 14: File too large')
    assert "a file exceeds this shell's size limit; raise it (ulimit -f)" in str(_save_error(error, tmp_path, ""))
