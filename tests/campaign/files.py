"""Damaged files of a run's directory, its checkpoints and the prepared data. None costs more than that file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.campaign.bench import STEPS, Bench, Injection, intact, refused, rows, strict

Harm = Callable[[Path], object]

LOGS = ("metrics.jsonl", "samples.jsonl", "goodput.jsonl")
LOG_HARMS: dict[str, Harm] = {
    "a byte above 127": lambda f: f.write_bytes(f.read_bytes() + b'{"step": \xff\xfe}\n'),
    "a bare number": lambda f: f.write_text(f.read_text() + "17\n"),
    "a last line cut short": lambda f: f.write_bytes(f.read_bytes()[:-9]),
    "a block of zeros": lambda f: f.write_bytes(f.read_bytes() + bytes(4096)),
    "a row of nothing": lambda f: f.write_text("{}\n" + f.read_text()),
    "wrong types": lambda f: f.write_text(f.read_text() + '{"step": "four", "event": 3, "time": null, "seconds": []}\n'),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "gone": Path.unlink,
}


def _log(name: str, harm: str) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.half()
        LOG_HARMS[harm](workdir / name)
        seen = bench.went_on(workdir, bench.train(workdir))
        assert all(isinstance(row, dict) for row in rows(workdir / name)), "the file is still damaged"
        goodput = strict(workdir / "summary.json")["goodput"]
        assert all(v >= 0 for v in goodput["seconds"].values()), f"negative seconds: {goodput['seconds']}"
        return seen

    return Injection("side file", f"{name}: {harm}", run)


def _side(name: str, title: str, harm: Harm) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.half()
        harm(workdir / name)
        return bench.went_on(workdir, bench.train(workdir))

    return Injection("side file", f"{name}: {title}", run)


def _to_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


SIDES = [
    _side("config.json", "not JSON", lambda f: f.write_text("{")),
    _side("manifest.json", "zeros", lambda f: f.write_bytes(bytes(100))),
    _side("summary.json", "not JSON", lambda f: f.write_bytes(b"\xff{")),
    _side("report.html", "a folder", _to_folder),
    _side(".lock", "bytes", lambda f: f.write_bytes(b"\xff\xfe")),
]


def _lock_is_a_link(bench: Bench) -> str:
    workdir = bench.half()
    victim = workdir.with_name("victim")
    victim.write_text("precious")
    (workdir / ".lock").symlink_to(victim)
    said = bench.train(workdir)
    assert victim.read_text() == "precious", "the target of the link was overwritten"
    return refused(said, "lock") if said.code else bench.went_on(workdir, said)


def _largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Damage to the later of two checkpoints, 4 and 8: the run resumes from 4, or from 8 if the state is not damaged.
CHECKPOINT_HARMS: dict[str, Harm] = {
    "arrays: a bit flipped": lambda step: _flip(_largest(step / "state")),
    "arrays: cut short": lambda step: _cut(_largest(step / "state")),
    "arrays: gone": lambda step: shutil.rmtree(step / "state"),
    "digests: gone": lambda step: (step / "SHA256.json").unlink(),
    "digests: empty": lambda step: (step / "SHA256.json").write_text(""),
    "digests: a list": lambda step: (step / "SHA256.json").write_text("[1]"),
    "digests: bytes": lambda step: (step / "SHA256.json").write_bytes(b"\xff\x00"),
    "config: another": lambda step: (step / "config" / "metadata").write_text("{}"),
    "tokenizer: cut short": lambda step: _cut(step / "tokenizer" / "metadata"),
    "metrics: not JSON": lambda step: (step / "metrics" / "metrics").write_bytes(b"\xff{"),
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
    "a file in its place": lambda step: (shutil.rmtree(step), step.write_text("x")),
}


def _two_left(bench: Bench) -> Path:
    """A run that was stopped at step 8, with checkpoints 4 and 8."""
    workdir = bench.root / "two"
    if not workdir.exists():
        # It ends at 8 by its config; the schedule up to there equals that of 12 steps (constant after the warm-up).
        flags = ["--config.optimizer.schedule.kind=constant"]
        assert bench.train(workdir.with_name("twelve"), *flags).code == 0
        assert bench.train(workdir, *flags, "--config.train.steps=8").code == 0
    copy = bench.folder()
    shutil.copytree(workdir, copy)
    return copy


def _checkpoint(title: str) -> Injection:
    def run(bench: Bench) -> str:
        workdir = _two_left(bench)
        intact(workdir, [4, 8])
        CHECKPOINT_HARMS[title](workdir / "checkpoints" / "8")
        said = bench.train(workdir, "--config.optimizer.schedule.kind=constant", "--allow_changes")
        assert said.code == 0, f"ended with {said.code}: {said.last}"
        ours, theirs = (strict(d / "summary.json")["params_sha256"] for d in (workdir, bench.root / "twelve"))
        assert ours == theirs, "the parameters differ from those of the uninterrupted run"
        step = 8 if title.startswith("metrics") else 4  # damaged metrics of a checkpoint cost no steps
        assert f"going on from step {step}" in said.err, f"did not go on from step {step}: {said.err[-300:]}"
        return f"named, went on from step {step}, equal bits"

    return Injection("checkpoint", title, run)


def _renamed(bench: Bench) -> str:
    workdir = bench.half()
    (workdir / "checkpoints" / "8").rename(workdir / "checkpoints" / str(STEPS))
    said = bench.train(workdir)
    assert strict_step(workdir) != STEPS or said.code != 0 or bits(workdir, bench), "step 8 was taken for step 12"
    return refused(said, "12|8") if said.code else bench.went_on(workdir, said)


def strict_step(workdir: Path) -> int | None:
    path = workdir / "summary.json"
    return strict(path)["step"] if path.exists() else None


def bits(workdir: Path, bench: Bench) -> bool:
    ours, theirs = (strict(d / "summary.json")["params_sha256"] for d in (workdir, bench.whole))
    return ours == theirs


def _stray(name: str, folder: bool) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.half()
        path = workdir / "checkpoints" / name
        path.mkdir() if folder else path.write_text("x")
        return bench.went_on(workdir, bench.train(workdir))

    return Injection("checkpoint", f"a stray {'folder' if folder else 'file'} {name}", run)


def _all_gone(bench: Bench) -> str:
    workdir = bench.half()
    before = (workdir / "metrics.jsonl").read_text()
    shutil.rmtree(workdir / "checkpoints")
    said = bench.train(workdir)
    kept = [f for f in workdir.rglob("*") if f.is_file() and "metrics" in f.name and before in f.read_text(errors="replace")]
    assert kept, "the rows of metrics.jsonl are lost"
    assert "checkpoint" in said.err, f"said nothing: {said.err[-300:]}"
    return refused(said, "checkpoint") if said.code else "began anew, said so, the old rows kept"


def _all_damaged(bench: Bench) -> str:
    workdir = bench.half()
    before = (workdir / "metrics.jsonl").read_text()
    _cut(_largest(workdir / "checkpoints" / "8" / "state"))
    said = bench.train(workdir)
    assert (workdir / "metrics.jsonl").read_text() == before, "metrics.jsonl was changed"
    assert (workdir / "checkpoints" / "8").exists(), "the only checkpoint was moved away"
    return refused(said, "no intact checkpoint")


# --------------------------------------------------------------------------------------------------- the data's cache


def prepared(cache: Path) -> Path:
    return next(p.parent for p in cache.glob("*/report.json"))


CACHE_HARMS: dict[str, Harm] = {
    "tokenizer.model: a bit flipped": lambda d: _flip(d / "tokenizer.model"),
    "tokenizer.model: cut short": lambda d: _cut(d / "tokenizer.model"),
    "tokenizer.model: gone": lambda d: (d / "tokenizer.model").unlink(),
    "report.json: empty": lambda d: (d / "report.json").write_text(""),
    "report.json: a list": lambda d: (d / "report.json").write_text("[]"),
    "report.json: gone": lambda d: (d / "report.json").unlink(),
    "report.json: another tokenizer's fingerprint": lambda d: (d / "report.json").write_text(
        (d / "report.json")
        .read_text()
        .replace(json.loads((d / "report.json").read_text())["tokenizer"]["fingerprint"], "0" * 64)
    ),
    "tokens: a bit flipped": lambda d: _flip(_largest(d / "tiny" / "train" / "tokens")),
    "tokens: a chunk gone": lambda d: _largest(d / "tiny" / "train" / "tokens").unlink(),
    "offsets: cut short": lambda d: _cut(_largest(d / "tiny" / "train" / "offsets")),
    "a split gone": lambda d: shutil.rmtree(d / "tiny" / "holdout"),
}


def _cached(title: str) -> Injection:
    def run(bench: Bench) -> str:
        cache, workdir = bench.cache(), bench.half()
        CACHE_HARMS[title](prepared(cache))
        said = bench.train(workdir, f"--config.data.cache={cache}")
        if said.code:
            intact(workdir, [8])
            return refused(said, r"corrupt|damaged|changed|missing|delete|prepare")
        return bench.went_on(workdir, said)

    return Injection("data cache", title, run)


def _texts(bench: Bench) -> str:
    cache, workdir = bench.cache(), bench.half()
    _cut(prepared(cache) / "tiny" / "holdout.jsonl.gz")
    said = bench.train(workdir, f"--config.data.cache={cache}", "--config.evaluate.baselines=True")
    return refused(said, "holdout.jsonl.gz") if said.code else bench.went_on(workdir, said)


INJECTIONS = [
    *(_log(name, harm) for name in LOGS for harm in LOG_HARMS),
    *SIDES,
    Injection("side file", ".lock: a link to a file", _lock_is_a_link),
    *(_checkpoint(title) for title in CHECKPOINT_HARMS),
    Injection("checkpoint", "8 renamed to 12", _renamed),
    _stray(".DS_Store", False),
    _stray("notes", True),
    _stray("9.orbax-checkpoint-tmp", True),
    Injection("checkpoint", "checkpoints/ gone", _all_gone),
    Injection("checkpoint", "the only one cut short", _all_damaged),
    *(_cached(title) for title in CACHE_HARMS),
    Injection("data cache", "held-out texts cut short, asked for by the baselines", _texts),
]
