"""Weights of unknown origin: tensors that cannot be converted as intended are refused by name, or reported in a note."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from lm import atomic, checkpoint, conversion, process, saved
from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
from lm.conversion import files
from lm.conversion.naming import drop_pattern
from lm.convert import main
from lm.errors import Busy, UserError
from lm.models.transformer import abstract_params

BLOCK = Block(Attention(4, 2), Mlp(48, "silu", gated=True), Norm("rms", eps=1e-6))
MODEL = Model(50, 32, decoder=Stack(1, {"L": BLOCK}, position=Rope()), head=Head(tied=False))
NORM, QUERY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
TOKENIZER = json.dumps({"version": "1.0", "added_tokens": [], "model": WORDS}).encode()
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """Returns a small LLaMA's tensors by name, and its config.json."""
    rng = np.random.default_rng(0)
    shapes = traverse_util.flatten_dict(abstract_params(MODEL))
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    folder = tmp_path_factory.mktemp("theirs")
    conversion.write(MODEL, traverse_util.unflatten_dict(params), folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.fixture
def theirs(tensors, tmp_path):
    """Returns a function that writes its folder with changed tensors: an array, a dtype to cast to, or None to omit one."""

    def make(changes=None, **config):
        folder = tmp_path / "theirs"
        folder.mkdir(exist_ok=True)
        held = dict(tensors[0])
        for name, change in (changes or {}).items():
            held[name] = held[name].astype(change) if isinstance(change, np.dtype) else change
        save_file({name: t for name, t in held.items() if t is not None}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(tensors[1] | config))
        return folder

    return make


def refused(folder, said, **options):
    with pytest.raises(UserError) as error:
        conversion.read(folder, **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def norm(imported):
    return imported.params["decoder"]["final_norm"]["scale"]


def test_of_mixed_dtypes_none_is_narrowed(theirs, tensors):
    value = np.full(32, 1.001, np.float32)  # 1.0 in bfloat16
    every = dict.fromkeys(tensors[0], BF16)
    for narrow in (every, every | {NORM: value}, every | {NORM: value.astype(np.float16)}, {"lm_head.weight": BF16}):
        imported = conversion.read(theirs(narrow))
        wide = narrow is not every
        assert imported.model.param_dtype == imported.model.dtype == ("float32" if wide else "bfloat16")
        assert bool(imported.notes) == wide and all("float32 because of" in note for note in imported.notes)
        for leaf in traverse_util.flatten_dict(imported.params).values():
            assert leaf.dtype == (np.float32 if wide else BF16)
    imported = conversion.read(theirs(every | {NORM: value}))
    assert NORM in imported.notes[0]
    assert (norm(imported) == value).all()
    imported = conversion.read(theirs(every | {NORM: value}), dtype="bfloat16")  # as asked for
    assert imported.model.param_dtype == "bfloat16" and not imported.notes


def test_buffers_do_not_decide_the_dtype(theirs, tensors):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    imported = conversion.read(theirs(dict.fromkeys(tensors[0], BF16) | buffer))
    assert imported.model.param_dtype == "bfloat16" and not imported.notes


def test_float64_is_rounded_and_said_unless_it_does_not_fit(theirs):
    imported = conversion.read(theirs({NORM: np.full(32, 0.1, np.float64)}))
    assert imported.model.param_dtype == "float32" and "1 float64 tensors are rounded" in imported.notes[0]
    large = np.ones(32)
    large[3] = 1e300
    refused(theirs({NORM: large}), f"{NORM} has values as large as 1e+300, which float32 cannot hold")
    # Of float32 the largest numbers are infinite in bfloat16.
    large = np.full(32, np.finfo(np.float32).max, np.float32)
    conversion.read(theirs({NORM: large}))
    refused(theirs({NORM: large}), f"{NORM} has values as large as 3.4e+38, which bfloat16 cannot hold", dtype="bfloat16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_values_that_are_not_finite_are_counted(theirs, value, dtype):
    array = np.ones(32, dtype)
    array[[2, 5]] = value
    refused(theirs({NORM: array}), f"{NORM} has 2 values that are NaN or infinite, of 32")


def test_a_model_of_values_that_are_not_finite_is_not_exported(theirs, tmp_path):
    imported = conversion.read(theirs())
    norm(imported)[1] = np.nan
    with pytest.raises(UserError, match=f"{NORM} has 1 values that are NaN"):
        conversion.write(imported.model, imported.params, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool", "complex64"])
def test_what_is_no_floating_point_number_is_no_weight(theirs, tensors, dtype):
    name = {"int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64", "bool": "BOOL", "complex64": "C64"}[dtype]
    whole = np.ones_like(tensors[0][QUERY]).astype(dtype)
    refused(theirs({QUERY: whole}), f"{QUERY} is of type {name}")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_float8_is_refused_by_name(theirs, tensors, dtype):
    """NumPy lacks the dtype, so safetensors raises AttributeError."""
    folder = theirs({QUERY: np.ones_like(tensors[0][QUERY]).astype(np.int8)})
    path = folder / "model.safetensors"
    edit(path, lambda header: header[QUERY].update(dtype=dtype))
    refused(folder, f"{QUERY} is of type {dtype} (1 tensors")
    refused(folder, f"{QUERY} is of type {dtype}", dtype="bfloat16")


def edit(path, change):
    """Changes the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


HEADERS = {
    "empty": lambda data: b"",
    "header alone": lambda data: data[:8],
    "cut in the header": lambda data: data[:100],
    "cut in the data": lambda data: data[:-1],
    "more than it says": lambda data: data + b"\0\0\0\0",
    "length of 2**60": lambda data: (2**60).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"?" + data[9:],
    "no UTF-8": lambda data: data[:20] + b"\xff" + data[21:],
    "a list": lambda data: (2).to_bytes(8, "little") + b"[]",
    "deep": lambda data: (10**6).to_bytes(8, "little") + b'{"a":' * 200_000,
    "negative": lambda data: data.replace(b'"shape":[32]', b'"shape":[-2]', 1),
    "overflow": lambda data: header(dict(a=dict(dtype="F32", shape=[2**62, 4], data_offsets=[0, 4])), b"\0" * 4),
    "huge": lambda data: header(dict(a=dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])), b"\0" * 4),
    "overlap": lambda data: header({k: dict(dtype="F32", shape=[1], data_offsets=[0, 4]) for k in "ab"}, b"\0" * 4),
    "a name twice": lambda data: header(b'{"a":X,"a":X}'.replace(b"X", ONE), b"\0" * 4),
}
ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def header(said, data):
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_safetensors_file_is_named(theirs, case):
    folder = theirs()
    path = folder / "model.safetensors"
    path.write_bytes(HEADERS[case](path.read_bytes()))
    refused(folder, str(path))


def sharded(folder, first="a.safetensors", second="b.safetensors", index=None):
    """Splits the file in two with an index; `index` changes its map from tensors to files."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(held)
    save_file({n: held[n] for n in names[:5]}, folder / "a.safetensors")
    save_file({n: held[n] for n in names[5:]}, folder / "b.safetensors")
    places = {n: first if i < 5 else second for i, n in enumerate(names)} | (index or {})
    (folder / files.INDEX).write_text(json.dumps({"weight_map": places}))
    return held


def test_shards_with_and_without_an_index(theirs):
    folder = theirs()
    whole = conversion.read(folder)
    sharded(folder)
    for _ in range(2):
        again = conversion.read(folder)
        for path, leaf in traverse_util.flatten_dict(whole.params).items():
            np.testing.assert_array_equal(traverse_util.flatten_dict(again.params)[path], leaf)
        (folder / files.INDEX).unlink(missing_ok=True)


def test_a_tensor_in_two_shards_is_refused(theirs, tmp_path):
    folder = theirs()
    held = sharded(folder)
    twice = load_file(folder / "b.safetensors") | {name: held[name] + 1 for name in list(held)[:1]}
    save_file(twice, folder / "b.safetensors")
    refused(folder, f"{list(held)[0]!r} is in both {folder / 'a.safetensors'} and {folder / 'b.safetensors'}")
    (folder / files.INDEX).unlink()
    refused(folder, "is in both")


def test_an_index_that_is_not_true_is_refused(theirs, tensors):
    folder = theirs()
    held = sharded(folder, index={"model.extra": "a.safetensors"})
    refused(folder, "'model.extra' is in a.safetensors, and it is not")
    places = {name: "b.safetensors" for name in held}
    (folder / files.INDEX).write_text(json.dumps({"weight_map": places}))
    refused(folder, "is in b.safetensors, and it is not")
    for wrong in (
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
    ):
        (folder / files.INDEX).write_text(wrong)
        refused(folder, str(folder / files.INDEX))
    (folder / files.INDEX).write_text('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}')
    refused(folder, "key 'a' appears twice")


@pytest.mark.parametrize("place", ["../b.safetensors", "{root}/b.safetensors", "fifo", "link", "sub/b.safetensors"])
def test_an_index_leads_nowhere_else(theirs, tmp_path, place):
    folder = theirs()
    sharded(folder, second=place.format(root=tmp_path))
    (folder / "b.safetensors").rename(tmp_path / "b.safetensors")
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(tmp_path / "b.safetensors")
    refused(folder, str(folder))


def test_a_linked_file_of_the_tokenizer_is_not_copied(theirs, tmp_path, capsys):
    folder = theirs()
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 2
    assert "symbolic link that leaves its folder" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists() and not list(tmp_path.glob(".*"))
    (folder / "vocab.txt").unlink()
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    refused(folder, "symbolic link that leaves its folder")


def test_sizes_of_config_are_held_against_the_file_before_memory_is_taken(theirs):
    refused(theirs(vocab_size=2 * 10**9), "model.embed_tokens.weight is [50, 32] where config.json means [2000000000, 32]")


def test_a_hostile_tokenizer_does_not_come_in(theirs, tmp_path, capsys):
    folder = theirs()
    for name, data in (("tokenizer.json", TOKENIZER.replace(b'"a": 0', b'"a": 4000000000')), ("spiece.model", b"no model")):
        (folder / name).write_bytes(data)
        assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 2
        err = capsys.readouterr().err
        assert f"error: {folder / name} is refused: " in err and "convert only the weights" in err and err.count("\n") == 1
        assert not (tmp_path / "ours").exists()
        (folder / name).unlink()


@pytest.mark.parametrize("words", [["--drop=("], ["--drop=a{99999999999}"], ["--drop=*"], ["--drop=.*"]])
def test_a_bad_drop_is_one_line(theirs, tmp_path, capsys, words):
    assert main(["from_hf", str(theirs()), str(tmp_path / "ours"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["lama", "yi", "aquila", "smollm", "gpt_neo", 7])
def test_an_unknown_model_type_names_the_families_that_fit(theirs, name):
    refused(theirs(model_type=name), f"{name!r} of config.json is not known; did you mean 'llama'? It fits everything")


def test_a_family_that_leaves_out_a_tensor_or_means_other_shapes_is_not_named(theirs):
    said = "and no known family fits this file; known: arcee"
    refused(theirs({"model.extra.weight": np.ones(3, np.float32)}, model_type="lama"), said)
    refused(theirs({NORM: np.ones(33, np.float32)}, model_type="lama"), said)
    refused(theirs({NORM: None}, model_type="lama"), said)


def test_sizes_by_default_are_named_for_what_they_can_cause_alone(theirs, tensors):
    """The error names the wrong shape, not the file."""

    def bare(changes):
        folder = theirs(changes)
        said = {k: v for k, v in tensors[1].items() if k != "max_position_embeddings"}
        (folder / "config.json").write_text(json.dumps(said))
        return folder

    hint = "by transformers' default: max_position_embeddings=2048"
    refused(
        bare({NORM: np.ones(33, np.float32)}), f"{NORM} is [33] where config.json means [32] (not in config.json, so {hint}"
    )
    for change in (
        {NORM: np.full(32, np.nan, np.float32)},
        {QUERY: np.ones_like(tensors[0][QUERY]).astype(np.int8)},
        {"model.extra.weight": np.ones(3, np.float32)},
    ):
        with pytest.raises(UserError) as error:
            conversion.read(bare(change))
        assert hint not in str(error.value)


MORE = {
    "biases that config.json denies": [f"model.layers.0.self_attn.{x}_proj.bias" for x in "qkvo"],
    "a second layer's": ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.weight", "model.layers.10.x"],
    "of many modules": [f"{name}.head.weight" for name in "abcdefgh"],
    "names that begin alike": ["model.norm.weights", "model.normal.weight", "lm_head.weight.scale", "lm_head"],
    "a quote, a bracket, a space": ["it's.weight", "[a b].weight", "$HOME.weight", "*"],
}


@pytest.mark.parametrize("case", MORE)
def test_the_suggested_drop_leaves_out_what_is_named_and_no_more(theirs, tensors, case):
    folder = theirs({name: np.ones(3, np.float32) for name in MORE[case]})
    with pytest.raises(UserError) as error:
        conversion.read(folder)
    flag = str(error.value).split("to leave them out: ")[1].removesuffix(")")
    name, regex = shlex.split(flag)
    assert name == "--drop" and not any(re.fullmatch(regex, key) for key in tensors[0])
    assert conversion.read(folder, drop=regex).model == conversion.read(theirs()).model


def test_the_suggested_drop_says_once_what_all_layers_have():
    unknown = [f"h.{i}.attn.{x}.bias" for i in range(48) for x in "qkv"]
    kept = [f"h.{i}.attn.{x}.weight" for i in range(48) for x in "qkv"]
    assert drop_pattern(unknown, kept) == r"h\.\d+\.attn\.k\.bias|h\.\d+\.attn\.q\.bias|h\.\d+\.attn\.v\.bias"
    assert drop_pattern(["h.1.x"], ["h.10.x", "h.2.y"]) == r"h\.1\..*"


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_bad_shard_size_is_one_line(tmp_path, capsys, size):
    assert main(["to_hf", str(tmp_path), str(tmp_path / "out"), f"--shard_gb={size}"]) == 2
    assert "--shard_gb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"model_type": []}', '{"model_type": NaN}', "{", '{"model_type": "llama", "rms_norm_eps": 1e999}']
)
def test_a_broken_config_is_one_line(theirs, tmp_path, capsys, text):
    folder = theirs()
    (folder / "config.json").write_text(text)
    assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 2
    err = capsys.readouterr().err
    assert "config.json" in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("said", [float("nan"), float("inf")])
def test_nan_in_config_is_refused(theirs, said):
    refused(theirs(rms_norm_eps=said), "is not a JSON number")


# ------------------------------------------------------------------------- whole or not at all


def test_names_of_tensors_do_not_act_on_the_terminal(theirs, tmp_path, capsys):
    name = "\x1b[2J\nerror: all is well\r"
    for words in ([], ["--drop=x"]):
        assert main(["from_hf", str(theirs({name: np.ones(3, np.float32)})), str(tmp_path / "ours"), *words]) == 2
        err = capsys.readouterr().err
        assert "\x1b" not in err and "\r" not in err and err.count("\n") == 1 and "all is well" in err


def test_what_is_rounded_is_said(theirs, tmp_path, capsys):
    assert main(["from_hf", str(theirs({NORM: np.full(32, 0.1)})), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().err == f"note: 1 float64 tensors are rounded to float32: {NORM}\n"


def test_what_fails_or_is_interrupted_leaves_nothing(theirs, tmp_path, capsys, monkeypatch):
    folder, target = theirs(), tmp_path / "ours"
    for error, code, said in (
        (KeyboardInterrupt(), 130, "interrupted; the same command starts again; also: nothing was written"),
        (OSError(28, "No space left on device"), 2, "no disk space"),
        (MemoryError(), 2, "not enough memory"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied"),
    ):

        def fail(*_, error=error, **__):
            raise error

        place = (checkpoint.ocp.Checkpointer, "save") if code == 2 else (conversion.reader, "_load_params")
        monkeypatch.setattr(*place, fail)
        assert main(["from_hf", str(folder), str(target)]) == code
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and "goes on where" not in err
        assert not target.exists() and not list(tmp_path.glob(".*"))
        monkeypatch.undo()
    assert main(["from_hf", str(folder), str(target)]) == 0
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(files, "_write_one", fail)
        assert main(["to_hf", str(target), str(tmp_path / "back")]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
        assert not (tmp_path / "back").exists() and not list(tmp_path.glob(".*"))
        monkeypatch.undo()
    assert main(["to_hf", str(target), str(tmp_path / "back")]) == 0


def test_a_library_that_a_signal_interrupts_is_the_interruption(theirs, tmp_path, capsys, monkeypatch):
    """Orbax raises its own error, or one that looks like a user's mistake."""
    folder, asked = theirs(), process._Asked.code
    restore = process.catch()
    try:
        for error in (RuntimeError("cannot schedule new futures"), UserError("the save failed"), OSError("cut short")):

            def interrupted(*_, error=error, **__):
                try:
                    signal.raise_signal(signal.SIGTERM)
                except process.Ended:
                    raise error from None

            signal.getsignal(signal.SIGTERM).raised = False
            monkeypatch.setattr(signal.getsignal(signal.SIGTERM), "last", -process.GAP)
            monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", interrupted)
            assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 75
            err = capsys.readouterr().err
            assert err.startswith("terminated; the same command starts again") and err.count("\n") == 1
            assert not (tmp_path / "ours").exists()
    finally:
        restore()
        process._Asked.code = asked


@pytest.mark.parametrize("target", ["", "a\\b", "{tmp}/c:/x"])
def test_a_target_that_a_library_would_rewrite_is_refused(theirs, tmp_path, capsys, target):
    assert main(["from_hf", str(theirs()), target.format(tmp=tmp_path)]) == 2
    assert "error: the target" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_what_a_kill_left_is_cleared_by_the_same_command(theirs, tmp_path, capsys):
    left = tmp_path / ".ours.partial"
    (left / "params" / "deep").mkdir(parents=True)
    (left / "params" / "deep" / "half").write_bytes(b"?" * 100)
    (left / "model.json").write_text("{")
    (tmp_path / "ours").mkdir()  # an empty target is taken
    assert main(["from_hf", str(theirs()), str(tmp_path / "ours")]) == 0
    assert not left.exists() and not (tmp_path / "ours" / "params" / "deep").exists()
    assert saved.open(tmp_path / "ours").model.width == 32


def test_the_error_is_told_though_a_thread_still_writes(tmp_path):
    """Threads, like Orbax's after Ctrl-C, write into a folder while it is removed."""
    ended = threading.Event()

    def write(folder):
        for i in range(200):
            with suppress(OSError):
                (folder / "deep" / str(i)).mkdir(parents=True)
        ended.set()

    with pytest.raises(KeyboardInterrupt), atomic.new_folder(tmp_path / "x") as folder:
        threading.Thread(target=write, args=[folder]).start()
        raise KeyboardInterrupt
    ended.wait()
    with atomic.new_folder(tmp_path / "x") as folder:  # whatever was left
        assert not list(folder.iterdir())


def test_a_target_that_is_being_written_is_left_alone(tmp_path):
    with atomic.new_folder(tmp_path / "x") as folder:
        (folder / "file").write_text("whole")
        with pytest.raises(Busy, match="another process is writing"), atomic.new_folder(tmp_path / "x"):
            pass
        assert (folder / "file").exists()
    assert (tmp_path / "x" / "file").read_text() == "whole"
    (tmp_path / ".y.partial").symlink_to(tmp_path / "x")
    with pytest.raises(OSError), atomic.new_folder(tmp_path / "y"):
        pass
    assert (tmp_path / "x" / "file").exists()


def test_no_room_is_said_before_a_byte_is_written(theirs, tmp_path, capsys, monkeypatch):
    folder = theirs()
    assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for words in (["from_hf", str(folder), str(tmp_path / "a")], ["to_hf", str(tmp_path / "ours"), str(tmp_path / "b")]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "no disk space" in err and "0.0 MB are free" in err and "the run resumes" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


@pytest.fixture
def small(tmp_path):
    """A file system of 400 kB; a small model needs up to 200 kB in blocks of 4 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("seen", ["before", "when it is full"])
def test_a_full_disk_leaves_nothing_and_the_same_command_works_once_there_is_room(
    theirs, small, tmp_path, capsys, monkeypatch, seen
):
    folder = theirs()
    assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 0
    (small / "other").write_bytes(b"?" * 370_000)
    if seen != "before":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    commands = ["from_hf", str(folder), str(small / "new")], ["to_hf", str(tmp_path / "ours"), str(small / "new")]
    for words in commands:
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: no disk space") and err.count("\n") == 1, err
        assert "free some" in err.lower() and "the run resumes" not in err
        assert [p.name for p in small.iterdir()] == ["other"]
    (small / "other").unlink()
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
        shutil.rmtree(small / "new")


def test_a_mounted_target_is_told_a_way_out(theirs, small, capsys):
    assert main(["from_hf", str(theirs()), str(small)]) == 2
    assert "which cannot be replaced; give a folder in it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- digests


@pytest.fixture
def ours(theirs, tmp_path):
    folder = theirs()
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    assert main(["from_hf", str(folder), str(tmp_path / "ours")]) == 0
    return tmp_path / "ours"


@pytest.mark.parametrize("name", ["model.json", "hf/tokenizer.json", "hf/config.json", "params/_METADATA"])
def test_a_bit_that_flips_in_a_converted_model_is_named(ours, tmp_path, capsys, name):
    data = bytearray((ours / name).read_bytes())
    data[len(data) // 2] ^= 1
    (ours / name).write_bytes(data)
    assert main(["to_hf", str(ours), str(tmp_path / "back")]) == 2
    assert f"{ours / name} was changed or cut short" in capsys.readouterr().err


def test_files_of_a_converted_model_that_are_missing_or_new(ours):
    model = saved.open(ours).model
    assert saved.open(ours).tokenizer_bytes() == TOKENIZER
    (ours / "hf" / "tokenizer.model").write_bytes(b"by hand")  # as finetune asks for where there is none
    saved.check_files(ours, "hf")
    (ours / "hf" / "config.json").unlink()
    with pytest.raises(UserError, match="hf/config.json was changed or cut short"):
        saved.check_files(ours, "hf")
    (ours / "params" / "more").write_bytes(b"")
    with pytest.raises(UserError, match="params/more was changed"):
        saved.open(ours).params(abstract_params(model))
    (ours / "SHA256.json").unlink()
    with pytest.raises(UserError, match="SHA256.json is missing"):
        saved.open(ours)


def test_folders_whose_digests_are_of_the_parameters_alone_still_load(ours):
    listing = json.loads((ours / "SHA256.json").read_text())
    before = {name.removeprefix("params/"): digest for name, digest in listing.items() if name.startswith("params/")}
    (ours / "SHA256.json").write_text(json.dumps(before))
    model = saved.open(ours).model
    assert model.width == 32 and saved.open(ours).tokenizer_bytes() == TOKENIZER
    assert saved.open(ours).params(abstract_params(model))
    (ours / "params" / "_METADATA").write_bytes(b"{}")
    with pytest.raises(UserError, match="params/_METADATA was changed"):
        saved.open(ours).params(abstract_params(model))
