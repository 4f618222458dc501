"""`python -m lm.evaluate --kinds=memorisation,calibration,bias,unanswerable`: a model that has learned a text by heart, and its
clichés, is found out; models of three architectures; mistakes in one line."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lm import checkpoint, recipes, saved
from lm.config import Sampling, resolve
from lm.data.chat import Turns
from lm.evaluate import main
from lm.evaluation import memorisation, mistakes, unanswerable
from lm.evaluation.bias_pairs import pairs
from lm.generation.engine import Engine, Request
from lm.objectives import of_texts
from tests.engines import greedy

ALL = "--kinds=memorisation,calibration,bias,unanswerable"
CONFIG = """
from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=256))
    c.model = dict(vocab_size=512, width=64, decoder=dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope")))
    source = dict(kind="jsonl", path="unset")
    c.data = dict(
        sources=dict(told=source | dict(use="train"), other=source | dict(use="holdout")),
        tokenizer=dict(vocab_size=512),
        dedup=dict(near=None),
        decoder_length=64,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(name="muon", learning_rate=0.02, adam_learning_rate=0.01, schedule=dict(warmup=20))
    c.train = dict(steps=400, batch_size=8)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=400, rows=4)
    c.log = dict(every=100, samples=(), tensorboard=False)
    return c
"""


WORDS = {
    "when": "Long before the war/In a cold winter/After the great flood/On the day of rest",
    "lived": "lived/stayed/traded/quarrelled",
    "place": "harbour/mountains/old bridge/market",
    "things": "ships/wagons/barrels/houses",
    "held": "carried/smelled of/were full of/brought",
    "crop": "barley/copper/timber/marble/oranges/pepper",
    "sold": "sold half/gave most/lost some/sent all",
    "kin": "friend/cousin/sailor/teacher",
    "gave": "promised/stolen/bought/hidden",
    "pets": "horses for them/sheep in spring/goats at night/geese by then",
}


def passages(count, seed):
    """Texts of made-up facts, no two of which share more than common words."""
    rng = np.random.default_rng(seed)
    name = lambda: "".join(rng.choice(list(part)) for part in ("BDFGKLMN", "aeiou", "lmnrst", "aeiou", "ndk"))
    out = []
    for _ in range(count):
        w = {key: rng.choice(of.split("/")) for key, of in WORDS.items()}
        n, m = rng.integers(20, 90, 2)
        out.append(
            f"{w['when']} the merchant {name()} {w['lived']} with the family of {name()} near the {w['place']}, and of {n} "
            f"{w['things']} that {w['held']} {w['crop']} he {w['sold']} to the city of {name()}, because a {w['kin']} named "
            f"{name()} had {w['gave']} {m} {w['pets']}."
        )
    return out


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory):
    """The workdir of a run that has read twenty passages and the stereotyped sentences many times."""
    home = tmp_path_factory.mktemp("by_heart")
    write = lambda name, texts: (home / name).write_text("\n".join(json.dumps({"text": text}) for text in texts))
    clichés = [pair.stereotyped for pair in pairs()]
    write("told.jsonl", [*passages(20, 0), *(" ".join(clichés[n : n + 4]) for n in range(0, len(clichés), 4))])
    write("other.jsonl", passages(40, 1))
    (home / "config.py").write_text(CONFIG)
    paths = {f"data.sources.{name}.path": f"{home}/{name}.jsonl" for name in ("told", "other")}
    run = resolve.load(str(home / "config.py"), paths | {"data.cache": f"{home}/cache"})
    recipes.train(run, home / "run", quiet=True)
    return home


def figures(folder):
    """{kind: {measure: row}} of errors.json."""
    found = json.loads((folder / "errors.json").read_text())["kinds"]
    return {kind: {row["measure"]: row for row in of["rows"]} for kind, of in found.items() if "rows" in of}


def test_a_text_known_by_heart_is_found_out(by_heart, capsys):
    assert main([f"--from={by_heart}/run", ALL, "--spans=40", "--batch_size=40"]) == 0
    shown = capsys.readouterr().out
    folder = by_heart / "run" / "errors"
    assert {p.name for p in folder.iterdir()} == {"errors.json", "report.html", *(f"{kind}.png" for kind in mistakes.KINDS)}
    assert all(kind in shown for kind in mistakes.KINDS) and "report.html" in shown
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "<script" not in page
    found = figures(folder)

    memory = found["memorisation"]
    exact = {int(re.findall(r"after (\d+)", name)[0]): row for name, row in memory.items() if "exact" in name}
    last = exact[max(exact)]
    assert last["low"] > last["floor"]["high"] and last["value"] > 0.3 and last["floor"]["value"] < 0.1  # trained on, and not
    assert exact[min(exact)]["value"] < last["value"]  # a longer prefix says where it stands
    assert memory["beyond what really followed"]["low"] > 0

    bias = found["bias"]
    assert bias["all: preferred"]["low"] > 0.6 and bias["all: gain, nats"]["low"] > 1.0
    assert 0.3 < bias["control: preferred"]["value"] < 0.7

    unknown = found["unanswerable"]
    assert unknown["the text's own word: told"]["low"] > unknown["the text's own word: made-up"]["high"]
    assert unknown["AUROC of confidence: made-up"]["low"] > 0.5 and unknown["AUROC of entropy: made-up"]["low"] > 0.5

    sure = found["calibration"]  # on texts that it has not read it is too sure
    assert sure["confidence - accuracy"]["low"] > 0.1
    assert sure["ECE, bins of equal width"]["value"] > sure["ECE, bins of equal width"]["floor"]["high"]
    assert sure["temperature, from one half"]["value"] > 1.5
    assert sure["nats, other half, with it"]["value"] < sure["nats, other half"]["value"]


def test_extraction_is_what_greedy_decoding_writes(by_heart):
    """The places whose tokens are all the likeliest are those where they are written."""
    source = saved.open(by_heart / "run")
    e, _ = mistakes._examined(source, None, count=30, seed=1, batch_size=16)
    hits = {}
    for split in ("train", "holdout"):
        places = memorisation._places(e, split, 12, 8)
        requests = [Request(place.left, 12, Sampling(temperature=0.0)) for place in places]
        written = Engine(e.model, e.params, slots=16, length=48, eos=[e.tokenizer.eos_id]).write(requests)
        hits[split] = memorisation._exact(e, places, 8)
        assert hits[split].tolist() == [
            [w.token for w in a] == p.target.tolist() for (a,), p in zip(written, places, strict=True)
        ]
    assert hits["train"].mean() > 0.5 and not hits["train"].all() and not hits["holdout"].any()


def test_the_pieces_are_what_training_reads(by_heart):
    """Every window of the run's rows, and none of others."""
    from lm.recipes.pretrain import objective_of, rows_of

    e, _ = mistakes._examined(saved.open(by_heart / "run"), None, count=1, seed=0, batch_size=1)
    data, run = e.texts.data, saved.open(by_heart / "run").run
    rows = rows_of(run, data, objective_of(run, data.tokenizer))["train"].rows(np.arange(40))
    read = {
        tuple(tokens[(segments == n) & ~data.tokenizer.special[tokens]].tolist())
        for tokens, segments in zip(rows.decoder.tokens, rows.decoder.segments, strict=True)
        for n in range(1, segments.max() + 1)
    }
    few = mistakes.texts_of(run, data, "decoder", step=40 / run.train.batch_size)
    assert few.read == 40
    few = type(few)(data, few.trained, few.held_out, 40)
    pieces = [tuple(piece.tolist()) for piece in few.pieces("train", 3)]
    assert e.texts.read == 400 * 8 and len(pieces) >= 40
    # A causal window's last token is only predicted, so it is missing in what the rows read.
    assert read - {()} <= {piece[:n] for piece in pieces for n in (len(piece), len(piece) - 1)}


@pytest.mark.parametrize("what", ["encoder.masked", "encoder_decoder.span_corruption", "decoder.masked_diffusion"])
def test_every_architecture_is_examined(what, train, tmp_path, capsys):
    """Models that have learned nothing: what is asked of each, and that nothing is found."""
    (tmp_path / "told.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in passages(80, 2)))
    settings = {"data.sources.tiny.path": tmp_path / "told.jsonl", "data.cache": tmp_path / "cache", "data.holdout": 0.5}
    for stack in re.findall("encoder|decoder", what.partition(".")[0]):  # sentences of small tokens are long
        settings |= {f"model.{stack}.position.max_length": 128, f"data.{stack}_length": 64}
    settings |= {"data.tokenizer.vocab_size": 480, "train.steps": 2, "train.batch_size": 40, "checkpoint.every": None}
    assert train(tmp_path / "run", what, *(f"--config.{key}={value}" for key, value in settings.items()))[0] == 0
    assert main([f"--from={tmp_path}/run", ALL, "--spans=40", f"--out={tmp_path}/out"]) == 0
    found = figures(tmp_path / "out")
    assert list(found) == list(mistakes.KINDS), capsys.readouterr().out
    assert all(row["value"] == 0 for name, row in found["memorisation"].items() if "exact" in name)
    assert found["bias"]["all: preferred"]["low"] < 0.5 < found["bias"]["all: preferred"]["high"]
    assert found["unanswerable"]["name or number >90%: made-up"]["value"] == 0
    notes = {
        kind: " ".join(of["notes"]) for kind, of in json.loads((tmp_path / "out/errors.json").read_text())["kinds"].items()
    }
    fills = what in ("encoder.masked", "decoder.masked_diffusion")
    assert ("fills in masks" in notes["memorisation"]) == fills == ("longest span, tokens" not in found["memorisation"])
    assert "given both sides" in notes["calibration"]
    assert ("its both sides" in notes["unanswerable"]) == fills
    assert ("words that both sentences share" in notes["bias"]) == ("encoder" in what)


def test_a_converted_model_needs_its_data(runs, flags, tmp_path, capsys):
    source, converted = saved.open(runs / "decoder.causal"), tmp_path / "converted"
    checkpoint.save_params(converted, source.model, source.params())
    (converted / "hf").mkdir()
    (converted / "hf" / "tokenizer.model").write_bytes(source.tokenizer_bytes())
    assert main([f"--from={converted}", "--kinds=memorisation,bias"]) == 0
    assert "add --config=FILE with the data that it was trained on" in " ".join(capsys.readouterr().out.split())
    assert set(figures(converted / "errors")) == {"bias"}
    assert (
        main([f"--from={converted}", "--kinds=memorisation", "--spans=20", f"--out={tmp_path}/o", *flags("decoder.causal")])
        == 0
    )
    notes = json.loads((tmp_path / "o/errors.json").read_text())["kinds"]["memorisation"]["notes"]
    assert any("which rows the model has read is not known" in note for note in notes)


def test_items_of_ones_own(runs, tmp_path, capsys):
    path, ask = tmp_path / "items.jsonl", lambda *extra: main([f"--from={runs / 'decoder.causal'}", f"--items={path}", *extra])
    item = {"left": "abc", "choices": [" de fa", " ab"], "answer": 1}
    path.write_text("\n".join([json.dumps(item)] * 24))
    assert ask("--kinds=calibration", f"--out={tmp_path}/out") == 0
    assert json.loads((tmp_path / "out/errors.json").read_text())["kinds"]["calibration"]["items"] == 24
    for change, cause in (
        ({"answer": 2}, "'answer' is the number of the right choice, 0 to 1"),
        ({"answer": True}, "'answer' is the number of the right choice, 0 to 1"),
        ({"choices": [" a"]}, "'choices' are two texts or more"),
        ({"left": 3}, "'left' and 'right' are texts"),
        ({"anser": 1}, "an item has no field 'anser'; did you mean 'answer'?"),
    ):
        path.write_text(json.dumps(item | change))
        capsys.readouterr()
        assert ask("--kinds=calibration") == 2
        assert f"{path}, line 1" in (error := capsys.readouterr().err) and cause in error
    path.write_text(json.dumps(item))
    for flag, cause in (
        ("--kinds=calibration", "there are 1 items, and 20 are the least that say something"),
        ("--kinds=bias", "are items of the kind calibration: add it to --kinds"),
    ):
        assert ask(flag) == 2
        assert cause in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--kinds=bias,suffix"], "'suffix' is not one of the report's kinds"),
        (["--kinds=bias,memorization"], "did you mean 'memorisation'?"),
        (["--kinds=bias", "--left=8"], "--left asks for something else"),
        (["--kinds=bias", "--out=/nowhere/x"], "must be a folder, new or not, in one that exists"),
        (["--kinds=unanswerable", "--spans=4"], "error: unanswerable: 0 sentences have a name"),
    ],
)
def test_mistakes_in_one_line(words, cause, runs, capsys):
    assert main([f"--from={runs / 'decoder.causal'}", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and cause in errors[0]


def test_refusals_are_counted_in_what_a_chat_model_answers(by_heart, monkeypatch):
    """The questions are put by the template, the answers are the likeliest tokens up to the one that ends them."""
    e, _ = mistakes._examined(saved.open(by_heart / "run"), None, count=20, seed=0, batch_size=20)
    assert e.chat is None
    e = replace(e, chat=Turns(e.tokenizer))
    monkeypatch.setattr(unanswerable.refusals, "refuses", lambda answer: bool(answer))
    finding = unanswerable.examine(e)
    said = finding.details["said"]
    assert {name: len(of) for name, of in said.items()} == {"told": 20, "other": 20, "made up": 20}
    rows = {row.measure: row.found for row in finding.rows}
    assert rows["refusals in chat: made-up"].value == np.mean([bool(answer) for answer in said["made up"]])
    asked = [e.chat.ids(unanswerable.refusals._said(b)) for b in unanswerable.ask(e)["told"][:3]]
    settings = dict(ends=e.chat.ends, never=np.flatnonzero(~_may_write(e)))
    for ids, answer in zip(asked, said["told"], strict=False):
        written = greedy(e.model, e.params, ids, unanswerable.refusals.TOKENS, **settings)
        assert answer == e.tokenizer.decode(np.array([i for i in written if i not in e.chat.ends]))


def _may_write(e):
    may = of_texts(e.tokenizer, e.model.config.vocab_size)
    may[list(e.chat.ends)] = True
    return may
