"""Config files, JSON and flags that mean nothing are refused in a line that names the cause."""

import json

import pytest

from lm import config
from lm.config import Run
from lm.config.resolve import from_json, load, split_flags
from tests.unit.config.common import MODEL, TREE, refused


@pytest.fixture
def file(tmp_path):
    def make(text, name="made.py"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return make


PLACEHOLDER = """
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict({"model": config_dict.required_placeholder(int)})
"""
RETURNS = "def get_config(*args):\n    return "


@pytest.mark.parametrize(
    "text,words",
    [
        (RETURNS + "None", r"made.py gives None: it must give a dict of sections"),
        (RETURNS + "[1, 2]", r"made.py gives \[1, 2\]|made.py gives \(1, 2\)"),
        (RETURNS + "'text'", "made.py gives 'text'"),
        (RETURNS + "7", "made.py gives 7"),
        (RETURNS + "{}", "config: model is missing; pretraining needs it"),
        (RETURNS + "{1: 2}", "unknown key config.1"),
        (RETURNS + "{None: 2}", "unknown key config.None"),
        (RETURNS + "{('a', 'b'): 2}", r"unknown key config.\('a', 'b'\)"),
        (RETURNS + "{'a\\nb\\x1b[2J': 2}", r"unknown key config.a\\nb\\x1b\[2J"),
        (RETURNS + "{'m' * 10**6: 2}", "unknown key config.mmm"),
        (RETURNS + "{'model': {'vocab_size': 10**5000}}", "config.model.width is missing"),
        (RETURNS + "{'model': {'vocab_size': 10**5000, 'width': 8}}", "=a number of thousands of digits is too large"),
        (RETURNS + "{'model': {'vocab_size': object(), 'width': 8}}", "config.model.vocab_size is <object"),
        (RETURNS + "{'model': 'x' * 10**6}", "config.model is 'xxx.*it must be a section"),
        (RETURNS + "1 / 0", "made.py failed: ZeroDivisionError: division by zero"),
        (RETURNS + "exec('raise ValueError(\"two\\\\nlines\")')", "made.py failed: ValueError: two lines"),
        (RETURNS + "1 / 0", r"made.py failed: ZeroDivisionError: division by zero \(\S*made.py, line \d+\)$"),
        (
            "from lm.config import Attention\ndef get_config():\n    return Attention(6,\n        kv_heads=2)",
            r"unexpected keyword argument 'kv_heads'; did you mean 'num_kv_heads'\? \(\S*made.py, line 3\)$",
        ),
        (
            "from lm.config import Rope\ndef get_config():\n    return Rope(base=1e4)",
            r"unexpected keyword argument 'base'; known: factor, .*theta \(\S*made.py, line 3\)$",
        ),
        ("import sys\ndef get_config():\n    sys.exit(0)", "made.py failed: SystemExit: 0"),
        ("raise SystemExit('no')", "made.py failed: SystemExit: no"),
        ("def get_config(:", "made.py failed: SyntaxError"),
        (b"cafe = 'caf\xe9'\ndef get_config():\n    return {}\n", "made.py failed: SyntaxError"),
        ("\0", "made.py failed: (SyntaxError|ValueError)"),
        ("import no_such_module", "made.py failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("get_config = {}", r"has no get_config\(\)"),
        ("class get_config:\n    pass", "made.py gives <config_made.get_config"),
        ("def get_config(size):\n    return {}", r"get_config\(\) of .* needs an argument: --config=.*made.py:ARGUMENT"),
        ("x = {}\nx['x'] = x\nget_config = lambda: x", "made.py failed: RecursionError|nested too deeply|unknown key config.x"),
        (PLACEHOLDER, "made.py failed: RequiredValueError|config.model is"),
    ],
)  # fmt: skip
def test_a_python_file_that_gives_no_config(file, text, words):
    refused(words, load, file(text))


def test_a_config_without_an_argument_is_given_none(file):
    path = file("def get_config():\n    return {}")
    refused(r"get_config\(\) of .*made.py takes no argument: leave out ':small'", load, f"{path}:small")
    refused("config.json is JSON and takes no argument: leave out ':small'", load, file("{}", "config.json") + ":small")


@pytest.mark.parametrize(
    "text,words",
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("17", "x.json gives 17: it must give a dict"),
        ("null", "x.json gives None"),
        ("[]", r"x.json gives \[\]"),
        ('{"model": 1, "model": 2}', "is not JSON: the key 'model' appears twice"),
        ('{"train": {"z_loss": NaN}}', "is not JSON: NaN is not a JSON number"),
        ('{"train": {"z_loss": -Infinity}}', "is not JSON: -Infinity is not a JSON number"),
        ('{"train": {"steps": ' + "9" * 5000 + "}}", "is not JSON: Exceeds the limit"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "x.json is nested too deeply"),
        ("[" * 100_000, "x.json is nested too deeply|is not JSON"),
        (b"\xff\xfe\x00", "x.json cannot be read: .*codec can't decode"),
        (b"\x00" * 10, "is not JSON"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_json_that_is_no_config(file, text, words):
    refused(words, load, file(text, "x.json"))


def test_json_that_a_windows_editor_wrote_is_read(file):
    assert load(file(b"\xef\xbb\xbf" + json.dumps(TREE).encode(), "x.json")) == Run(MODEL)


def test_numbers_of_json_that_float_cannot_hold(file):
    tree = json.loads(json.dumps(TREE))
    tree["optimizer"]["learning_rate"] = 10**400
    refused("config.optimizer.learning_rate=1000.* is infinite in float32", load, file(json.dumps(tree), "x.json"))
    text = json.dumps(tree).replace(str(10**400), "1e400")
    refused("is not JSON: 1e400 is too large a number", load, file(text, "x.json"))
    refused("is not JSON", from_json, "{")


def test_mixtures_in_mixtures_in_mixtures(file):
    objective = dict(kind="causal")
    for _ in range(300):
        objective = dict(kind="mixture", parts=dict(a=dict(objective=objective)))
    refused("nested too deeply|does not suit|mixture", load, file(json.dumps(TREE | dict(objective=objective)), "x.json"))


def test_files_that_are_no_config_files(file, tmp_path):
    refused("is a folder: give a file in it", load, str(tmp_path))
    refused("is a folder", load, ".")
    refused("ends in neither .py nor .json: rename it", load, file("x = 1", "config.txt"))
    refused("ends in neither .py nor .json", load, file("x = 1", "config"))
    refused("no config file", load, "x" * 5000 + ".py")
    refused("no config file", load, "a\0b.py")
    refused("no config file", load, "")
    refused("no config file", load, ":")
    refused("no config file", load, "\udcff.py")
    refused(r"no config file .*a\\nb", load, str(tmp_path / "a\nb.py"))


@pytest.mark.parametrize(
    "key,text,words",
    [
        ("a", "", "unknown key config.a"),
        ("", "1", "--config. has an empty part in its key: give a key such as"),
        (".", "1", "--config.. has an empty part"),
        ("train.", "1", "--config.train. has an empty part"),
        (".steps", "1", "has an empty part"),
        ("train..steps", "1", "--config.train..steps has an empty part"),
        ("train.steps", "1e3", r"config.train.steps is 1000.0; it must be int \(write 1000\)"),
        ("train.steps", "", "config.train.steps is ''; it must be int"),
        ("train.steps", "None", "config.train.steps is None; it must be int$"),
        ("train.steps", "1_", "config.train.steps is '1_'"),
        ("train.steps", "(" * 5000, "config.train.steps is '\\(\\(.*; it must be int"),
        ("train.steps", "-" * 5000, "config.train.steps is '---"),
        ("train.steps", "9" * 5000, "config.train.steps is '999"),
        ("train.steps", "0x" + "f" * 9000, "config.train.steps=a number of thousands of digits is too large"),
        ("train.steps", "{[]: 1}", "config.train.steps is '{"),
        ("train.steps", "{1, 2}", "config.train.steps is {1, 2}"),
        ("train.steps", "b'x'", "config.train.steps is b'x'"),
        ("train.steps", "1+2j", "config.train.steps is"),
        ("train.steps", "1\0", r"config.train.steps is '1\\x00'"),
        ("train.steps", "\udcff", r"config.train.steps is '\\udcff'"),
        ("train.steps", "1or 2", "config.train.steps is '1or 2'"),
        ("train.steps.x", "1", "'steps' is 1000, not a section"),
        ("train", "3", "config.train is 3; it must be a section"),
        ("train", "{'steps': 3, 'stepz': 4}", "unknown key config.train.stepz; did you mean 'steps'"),
        ("train", "()", r"config.train is \(\); it must be a section"),
        ("log.samples", "word", r"config.log.samples is 'word'; it must be a list, such as \('one', 'two'\) or \('one',\)"),
        ("log.samples", "()x", r"config.log.samples is '\(\)x'; it must be a list"),
        ("log.samples", "(1,)", r"config.log.samples\[0\] is 1; it must be str"),
        ("log.samples", "('a\\0',)", r"config.log.samples\[0\]='a\\x00' holds a zero byte"),
        ("log.samples.0", "x", "'samples' is .*not a section"),
        ("optimizer.name", "3", "config.optimizer.name is 3; known: adafactor, adamw, lion, muon"),
        ("optimizer.name", "[]", r"config.optimizer.name is \[\]; known"),
        ("objective.kind", "[]", r"config.objective.kind is \[\]; known: any_order"),
        ("objective.kind", "x" * 5000, "config.objective.kind is 'xxx"),
        ("data.sources", "{'': {}}", r"config.data.sources \(a name\)='' is too short: give a text of 1 or more characters"),
        ("data.sources", "{1: {}}", r"config.data.sources \(a name\) is 1; it must be str"),
        ("data.sources", "{}", "config.data: sources is empty: give at least one"),
        ("data.sources.sotu.path", "https://example.org/a.jsonl", "path=https://example.org/a.jsonl is not read"),
        ("data.sources.sotu.weight", "0", "weights of all sources are 0"),
        ("data.sources.sotu.weight", "1e999", "config.data.sources.sotu.weight=inf is no finite number"),
        ("mesh", "{'fsdp': -1, 'tensor': -1}", "config.mesh: fsdp and tensor are both -1"),
        ("mesh.tensor", "-2", "config.mesh.tensor=-2 is too small: give 1 or more, or -1 for what the others leave"),
        ("pod.topology", "''", "config.pod.topology='' is too short"),
    ],
)  # fmt: skip
def test_flags_that_mean_nothing(file, key, text, words):
    refused(words, load, file(json.dumps(TREE), "x.json"), {key: text})


def test_a_section_that_is_none_is_given_by_its_fields(file):
    assert load(file(json.dumps(TREE), "x.json"), {"pod.topology": "v5e:2x4"}).pod == config.Pod("v5e:2x4")


def test_a_flag_is_no_other_flags_value():
    refused(
        "--config.train.steps needs a value: --config.train.steps=...", split_flags, ["--config.train.steps", "--workdir=x"]
    )
    assert split_flags(["--config.train.seed", "-1"]) == ([], {"train.seed": "-1"})
