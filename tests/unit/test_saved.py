"""Opening saved models, and the errors for every other folder that a user may give."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, config, saved
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.types import TrainState

RUN = config.Run(config.Model(8, 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with the steps 1 and 2."""
    workdir, zero = tmp_path_factory.mktemp("trained"), jnp.int32(0)
    writer = Checkpoints(workdir, config.Checkpoint(keep=2), RUN, b"tokenizer")
    for step in (1, 2):
        params = {"w": jnp.full(4, float(step))}
        writer.save(TrainState(jnp.int32(step), params, (), None, zero, zero, jnp.zeros((2, 2), jnp.uint32)))
        writer.wait()
    writer.close()
    return workdir


def test_a_run(trained):
    source = saved.open(trained, name="train.init_from")
    assert (source.model, source.run, source.step) == (RUN.model, RUN, 2)
    assert source.tokenizer_bytes() == b"tokenizer"
    np.testing.assert_array_equal(source.params({"w": jax.ShapeDtypeStruct((4,), np.float32)})["w"], np.full(4, 2.0))


def test_a_converted_model(converted):
    source = saved.open(converted)
    assert (source.model, source.run, source.step) == (RUN.model, None, None)
    assert source.tokenizer_bytes() is None
    with pytest.raises(UserError, match="has no tokenizer; put that of this model into .*hf"):
        source.tokenizer()


def test_a_damaged_step_is_passed_over_and_where_none_is_intact_each_is_named(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checkpoints/2/SHA256.json").unlink()
    with pytest.warns(UserWarning, match=r"checkpoints/2 is damaged: SHA256.json is missing.*; step 1 is read instead"):
        assert saved.open(run).step == 1
    (run / "checkpoints/1/config/metadata").write_text("{}")
    with pytest.raises(UserError, match=r"has no intact checkpoint \(2: SHA256.*; 1: config/metadata.*train it again"):
        saved.open(run)


FOLDERS = {  # given by mistake -> (how it is made from an empty folder, the error)
    "empty": (lambda d: None, "is an empty folder"),
    "gone": (lambda d: d.rmdir(), "does not exist"),
    "file": (lambda d: (d.rmdir(), d.write_text("x")), "is a file; give the folder"),
    "transformers": (
        lambda d: (d / "config.json").write_text('{"model_type": "gpt2"}'),
        "is a Hugging Face .*: python -m lm.convert from_hf .* NEW, and give",
    ),
    "weights": (lambda d: (d / "model-00001-of-00002.safetensors").touch(), "is a Hugging Face folder"),
    "pickles": (lambda d: (d / "pytorch_model.bin").touch(), "is a Hugging Face folder"),
    "unfinished": (lambda d: (d / "params").mkdir(), "is an unfinished conversion .no model.json."),
    "no checkpoint": (
        lambda d: ((d / "config.json").write_text("{}"), (d / "checkpoints").mkdir()),
        "is a run without a ch",
    ),
    "study": (lambda d: (d / "study.json").touch(), "is the folder of a study; give one of its runs, such as .*seed0/run"),
    "other": (
        lambda d: (d / "notes.txt").touch(),
        "is neither a converted model .no model.json. nor",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_other_folders(kind, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    make, cause = FOLDERS[kind]
    make(folder)
    with pytest.raises(UserError, match=f"^--from={folder} {cause}"):
        saved.open(folder)


def test_folders_inside_a_run_or_a_converted_model(trained, converted):
    for part, cause in (
        (trained / "checkpoints", f"holds the checkpoints of a run; give the run's workdir, {trained}$"),
        (trained / "checkpoints/2", f"is one checkpoint of a run; give the run's workdir, {trained}: its latest"),
        (converted / "params", f"is a part of a converted model; give the model's folder, {converted}$"),
        (converted / "model.json", f"is a file; give the folder of the run or model, such as {converted}$"),
    ):
        with pytest.raises(UserError, match=f"^train.init_from={part} {cause}"):
            saved.open(part, name="train.init_from")


def test_a_folder_without_the_right_to_read_it(trained, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(saved.epath.Path(trained)), "iterdir", refused)
    with pytest.raises(UserError, match="cannot be read .Permission denied.; fix that, or give another"):
        saved.open(trained)


def test_a_bucket_without_gcsfs(monkeypatch):
    def lacking(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(saved.epath, "Path", type("Bucket", (), {"__init__": lambda self, path: None, "exists": lacking}))
    with pytest.raises(UserError, match="^--from=gs://bucket/run needs gcsfs .Please install gcsfs.: pip install gcsfs"):
        saved.open("gs://bucket/run")


def test_a_changed_file_of_a_converted_model(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "changed")
    listing = json.loads((folder / "SHA256.json").read_text())
    (folder / next(name for name in listing if name.startswith("params/"))).write_bytes(b"x")
    with pytest.raises(UserError, match="params/.* was changed or cut short; convert it again"):
        saved.open(folder).params({})
    (folder / "model.json").write_text("{}")
    with pytest.raises(UserError, match="model.json was changed or cut short; convert it again"):
        saved.open(folder)


# --------------------------------------------------------------------------- restoring parameters with a fresh head


TRUNK = {"embed": {"tokens": np.arange(16.0, dtype=np.float32).reshape(8, 2)}, "encoder": {"norm": np.ones(2, np.float32)}}
OLD_HEAD, NEW_HEAD = {"out": np.ones((2, 8), np.float32)}, {"out": np.full((2, 3), 7.0, np.float32), "bias": np.zeros(3)}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    checkpoint.save_params(folder, config.Model(8, 2), TRUNK | {"head": OLD_HEAD})
    return folder


def load(folder, wanted, **fresh):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32), wanted)
    return saved.open(folder).params(abstract, fresh=fresh)


def test_a_fresh_head_on_the_saved_trunk(converted):
    wanted = TRUNK | {"head": NEW_HEAD}
    found = load(converted, wanted, head=NEW_HEAD)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found["head"] is NEW_HEAD
    kept = load(converted, TRUNK | {"head": OLD_HEAD})
    jax.tree.map(np.testing.assert_array_equal, kept, TRUNK | {"head": OLD_HEAD})


def test_a_fresh_head_need_not_be_saved(converted, tmp_path):
    """A tied head has no parameters of its own, and a model may be loaded without the head that it was saved with."""
    checkpoint.save_params(tmp_path, config.Model(8, 2), TRUNK)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path, TRUNK | {"head": NEW_HEAD}, head=NEW_HEAD)["head"], NEW_HEAD)
    without = {"embed": TRUNK["embed"], "encoder": TRUNK["encoder"]}
    assert load(converted, without, head={})["head"] == {}


def test_all_other_names_must_be_both_saved_and_wanted(converted):
    wanted = TRUNK | {"head": NEW_HEAD}
    more = wanted | {"encoder": {"norm": np.ones(2), "bias": np.ones(2)}}
    for tree, fresh, cause in (
        (more, {"head": NEW_HEAD}, r"encoder/bias: saved nothing, wanted \[2\]"),
        ({"embed": TRUNK["embed"]}, {"head": NEW_HEAD}, r"encoder/norm: saved \[2\], wanted nothing"),
        (wanted | {"embed": {"tokens": np.ones((9, 2))}}, {"head": NEW_HEAD}, r"embed/tokens: saved \[8, 2\], wanted \[9, 2\]"),
        (wanted, {}, r"head/bias: saved nothing, wanted \[3\]; head/out: saved \[2, 8\], wanted \[2, 3\]"),
    ):
        with pytest.raises(UserError, match=f"are of another model: {cause}"):
            load(converted, tree, **fresh)
