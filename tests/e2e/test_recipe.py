"""A run of a recipe of another kind (`tests/toy.py`), from its start to its report, and from the middle on."""

import json

import pytest

from lm.training import fit
from lm.training.assembly import assemble
from lm.training.run import dry_run, train
from tests.toy import Toy, run


def rows(workdir, name="metrics.jsonl"):
    found = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in found]


def test_a_run_with_a_source_of_step_and_state_resumes_to_the_bit(tmp_path):
    """Also its log: the means of a row that a kill cut in two, and its figures of two evaluators."""
    once = train(run(), Toy(), tmp_path / "once", quiet=True)
    with pytest.raises(RuntimeError, match="the process dies"):
        train(run(), Toy(fails_at=3), tmp_path / "twice", quiet=True)
    again = Toy()
    twice = train(run(), again, tmp_path / "twice", quiet=True)
    assert again.asked == [2, 3, 4, 5]
    assert once["params_sha256"] == twice["params_sha256"] and once["heldout"] == twice["heldout"]
    assert once["heldout"].keys() == {"distance", "norm"} and once["tokens_seen"] == twice["tokens_seen"]
    assert rows(tmp_path / "once") == rows(tmp_path / "twice")
    logged = [row for row in rows(tmp_path / "once") if "loss" in row]
    assert [row["step"] for row in logged] == [4, 6] and all(row.keys() >= {"margin", "worse_loss"} for row in logged)


def test_a_dry_run_counts_what_is_frozen():
    assert "0.000  frozen, and in no checkpoint" in dry_run(run(), Toy())
    parts = assemble(run(), Toy())
    needs = fit.needs(parts, parts.lower())
    parameters, counters = 4 * 64, 4 * 7 + 4  # step, skipped, in a row, four of tokens; Adam's own count
    found = [
        needs.kinds[kind] for kind in ("parameters", "optimizer and the rest of the state", "frozen, and in no checkpoint")
    ]
    assert found == [parameters, 3 * parameters + counters + 4, parameters], "an average, two moments, and the teacher"
