"""The table of pods, with a fake compiler: which entries are compiled, which results are kept, and the table."""

import json
import sys
from pathlib import Path

import pytest

from lm.errors import UserError
from tpu import table

ROOT = Path(__file__).parents[3]
PODS = """
from ml_collections import config_dict

PODS = {"small": 8, "large": 80, "broken": 800}


def get_config(name):
    c = config_dict.ConfigDict()
    c.model = dict(vocab_size=64, width=PODS[name], decoder=dict(num_layers=1, blocks=dict(L=dict(
        attention=dict(num_heads=2), ffn=dict(hidden=32)))))
    c.data = dict(decoder_length=16)
    c.mesh = dict(data=1, fsdp=4)
    c.pod = dict(topology="v5e:2x2")
    c.log = dict(every=10)
    return c
"""
# Writes a report like tpu.compile, and a line to `calls`; "large" does not fit, "broken" ends without a report.
FAKE = """
import json, sys
from pathlib import Path
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
name = flags["config"].partition(":")[2]
with Path("calls").open("a") as calls:
    calls.write(name + "\\n")
if name == "broken":
    sys.exit("error: no such thing")
report = json.loads(Path("report.json").read_text())
if name == "large":
    report |= dict(fits=False, short_by=3 * 2**30, roofline=None, collectives=None)
    report["hbm"]["peak"] = None
Path(flags["json"]).write_text(json.dumps(report))
sys.exit(name == "large")
"""
REPORT = {
    "config": "configs/pod.py:small",
    "topology": "v5e:2x2",
    "slices": 2,
    "chips": 8,
    "mesh": {"slice": 2, "data": 1, "fsdp": 4, "tensor": 1},
    "batch_size": 1024,
    "microbatches": 4,
    "remat": "full",
    "tokens_per_step": 1024 * 4096,
    "parameters": 6_738_415_616,
    "fits": True,
    "short_by": 0,
    "hbm": {"capacity": 16_911_433_728, "peak": 12 * 2**30},
    "flops": {"model": 1.0, "executed": 1.0},
    "collectives": [
        {"kind": "all-gather", "axes": ["fsdp"], "count": 3, "bytes": 40_000_000_000},
        {"kind": "all-reduce", "axes": ["slice"], "count": 1, "bytes": 500_000_000},
        {"kind": "reduce-scatter", "axes": ["fsdp"], "count": 3, "bytes": 1_200_000_000},
        {"kind": "all-reduce", "axes": ["fsdp", "tensor"], "count": 3, "bytes": 7_000_000},
    ],
    "roofline": {"step_s": 1.0, "bound": "compute", "mfu_ceiling": 0.714},
    "compile_seconds": 231.4,
    "libtpu": "0.0.42",
    "jax": "0.10.2",
    "step": "train",
}
SMALL = (
    "| `small` | 6.7 B | 8 (2 x v5e:2x2) | slice 2, fsdp 4 | 1,024 x 4,096 in 4 | 12.0 of 15.8 | yes | compute | 71% "
    "| fsdp 41, slice 0.5, fsdp+tensor 0.007 | 231 s |"
)
LARGE = (
    "| `large` | 6.7 B | 8 (2 x v5e:2x2) | slice 2, fsdp 4 | 1,024 x 4,096 in 4 | ? of 15.8 | **no** (3.0 short) | ? | ? "
    "| none | 231 s |"
)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/pod.py").write_text(PODS)
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/pods.md").write_text("before\n<!-- pods -->\nold\n<!-- /pods -->\nafter\n")
    return tmp_path


def update(repository, *names, **settings):
    """(failures, entries compiled by this call)."""
    calls = repository / "calls"
    calls.write_text("")
    command = (sys.executable, "fake.py")
    failed = table.update(names, repository / "tpu/results", command=command, root=repository, **settings)
    return failed, calls.read_text().split()


def change(repository, old, new):
    file = repository / "configs/pod.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_all_are_compiled_kept_and_shown(repository):
    failed, compiled = update(repository)
    assert compiled == ["small", "large", "broken"] and failed == {"broken": "error: no such thing"}
    lines = (repository / "tpu/results/table.md").read_text().splitlines()
    assert lines[2:] == [SMALL, LARGE, "", "Compiled with jax 0.10.2 and libtpu 0.0.42."]
    kept = json.loads((repository / "tpu/results/small.json").read_text())
    assert {k: kept[k] for k in REPORT} == REPORT and set(kept) - set(REPORT) == {"made_of"}
    assert sorted(p.name for p in (repository / "tpu/results").iterdir()) == ["large.json", "small.json", "table.md"]


def test_a_policy_has_a_row_for_each_of_its_programs(repository):
    beside = dict(REPORT["hbm"], beside=2**30)
    decode = dict(REPORT, step="decode", batch_size=64, tokens_per_step=64, microbatches=1, hbm=beside)
    report = dict(REPORT, frozen_parameters=21_000_000, decode=decode)
    (repository / "report.json").write_text(json.dumps(report))
    update(repository, "small")
    first, second = (repository / "tpu/results/table.md").read_text().splitlines()[2:4]
    assert first == SMALL.replace("6.7 B", "6.7 B, 21 M frozen")
    assert second.startswith("| `small`, decode | 6.7 B | 8 (2 x v5e:2x2) | slice 2, fsdp 4 | 64 x 1 | 12.0 + 1.0 of 15.8 |")


def test_the_page_has_it_between_its_marks(repository):
    update(repository, "small")
    text = (repository / "tpu/results/table.md").read_text()
    assert (repository / "docs/pods.md").read_text() == f"before\n<!-- pods -->\n{text}<!-- /pods -->\nafter\n"
    table.update(["small"], repository / "elsewhere", command=(sys.executable, "fake.py"), root=repository)
    assert (repository / "docs/pods.md").read_text() == f"before\n<!-- pods -->\n{text}<!-- /pods -->\nafter\n"
    (repository / "docs/pods.md").write_text("no marks\n")
    update(repository, "small")
    assert (repository / "docs/pods.md").read_text() == "no marks\n"


def test_what_is_there_is_compiled_again_only_if_its_settings_changed(repository):
    update(repository, "small", "large")
    assert update(repository, "small", "large")[1] == []
    change(repository, '"small": 8,', '"small": 16,')
    assert update(repository, "small", "large")[1] == ["small"]
    change(repository, 'topology="v5e:2x2"', 'topology="v5e:2x2", price=1.0, mfu=0.5')  # do not affect the compiled step
    change(repository, "every=10", "every=20")
    assert update(repository, "small", "large")[1] == []
    change(repository, "decoder_length=16", "decoder_length=32")
    assert update(repository, "small", "large")[1] == ["small", "large"]
    assert update(repository, "small", again=True)[1] == ["small"]


def test_a_failure_keeps_what_was_there(repository):
    update(repository, "small")
    (repository / "tpu/results/small.json").rename(repository / "tpu/results/broken.json")
    old = (repository / "tpu/results/broken.json").read_text()
    failed, compiled = update(repository, "broken")
    assert compiled == ["broken"] and "broken" in failed
    assert (repository / "tpu/results/broken.json").read_text() == old


def test_half_a_report_is_none(repository):
    update(repository, "small")
    (repository / "tpu/results/small.json").write_text('{"config": "configs')
    assert update(repository, "small")[1] == ["small"]
    assert SMALL in (repository / "tpu/results/table.md").read_text()


def test_an_unknown_name_compiles_nothing(repository):
    with pytest.raises(UserError, match=r"configs/pod.py has no smal; did you mean 'small'\?"):
        update(repository, "large", "smal")
    assert (repository / "calls").read_text() == ""


def test_the_command_names_its_mistake(capsys):
    assert table.main(["nothing_like_it"]) == 2
    assert "error: configs/pod.py has no nothing_like_it" in capsys.readouterr().err
    assert not (ROOT / "tpu/results/nothing_like_it.json").exists()
