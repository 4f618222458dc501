"""Every config that has data is shown as it is trained on: the batches of `Recipe.source`, array by array."""

import html
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.filled import ROOT
from experiments.objectives import run as objectives_run
from lm import config, recipes
from lm.config import resolve
from lm.data import tokenizer
from lm.data.loader import Position
from lm.errors import UserError
from lm.training.assembly import assemble
from lm.types import Example
from lm.view import counts, page, reading, terminal
from lm.view.look import Look
from tests.fakes import small_model

OF_RECORDS = {"finetune", "my_labels"}
OF_RECORDS |= {"encoder_tree"}  # tests/e2e/test_trees.py looks at rows of trees
OF_RECORDS |= {"encoder_ctc_speech", "encdec_speech"}  # tests/e2e/test_speech.py looks at rows of speech
OF_RECORDS |= {"clip_openmoji", "encoder_vit", "image_codes", "encdec_captioner", "decoder_draws"}  # rows of pictures
CASES = {name: (f"{ROOT}/configs/{case.config}.py", case.flags) for name, case in objectives_run.CASES.items()}
CASES |= {path.stem: (str(path), ()) for path in (ROOT / "configs").glob("*.py") if path.stem not in (*CASES, *OF_RECORDS)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources of made-up words and hostile ones, the cache of what is prepared of them, and a tokenizer for records."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["<script>alert(1)</script>", "שלום", "東京", *("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(60))]
    for name, count in (("long", 500), ("short", 30)):
        texts = [" ".join(words[i] for i in rng.integers(0, len(words), count)) for _ in range(40)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    model = tokenizer.train(Path(__file__).read_text(encoding="utf-8").splitlines(), config.Tokenizer(vocab_size=500))
    (root / "tokenizer.model").write_bytes(model.proto)
    return root


def run_of(path, flags, corpus):
    """The run of a config, on the small corpus: weights 3 to 1."""
    run = resolve.load(path, dict(flag.removeprefix("--config.").split("=", 1) for flag in flags))
    weights = {"long": 3.0, "short": 1.0}
    sources = {name: config.Source("jsonl", f"{corpus}/{name}.jsonl", weight=weight) for name, weight in weights.items()}
    data = replace(run.data, sources=sources, dedup=config.Dedup(near=None), holdout=0.2, cache=f"{corpus}/cache")
    lengths = {n: min(getattr(data, n), 512) for n in ("encoder_length", "decoder_length") if getattr(data, n)}
    data = replace(data, tokenizer=config.Tokenizer(vocab_size=400), **lengths)
    return replace(run, data=data, train=replace(run.train, batch_size=8), mesh=config.Mesh(), pod=None)


def examples(batch):
    return [batch] if isinstance(batch, Example) else list(batch.examples)


def check_shown(rows, batch, pieces, told):
    """All that is shown of rows against the arrays of the batch."""
    for i, row in enumerate(rows):
        for example, strips in zip(examples(batch), row.parts.values(), strict=True):
            for strip in strips:
                stream = getattr(example, strip.name)
                n = int((stream.segments[i] > 0).sum())
                assert strip.ids == stream.tokens[i, :n].tolist() and strip.size == stream.tokens.shape[1]
                assert strip.lines["reads"] == [pieces.text(token) for token in strip.ids]
            last, weights = strips[-1], example.weights[i]
            asked = [told(target) for target in example.targets[i][weights != 0].tolist()]
            where = np.arange(len(weights)) if example.where is None else example.where[i]
            assert np.flatnonzero(last.asked).tolist() == np.unique(where[weights != 0]).tolist()
            by_place = np.argsort(where[weights != 0], kind="stable").tolist()
            assert " ".join(t for t in last.lines["predicts"] if t != "·") == " ".join(asked[j] for j in by_place)


def check_drawn(look, folder):
    """Every piece is on the page and in the terminal."""
    text = page.write(look, folder / "show.html").read_text(encoding="utf-8")
    out = io.StringIO()
    terminal.show(look, Console(file=out, width=80, highlight=False))
    assert "<script" not in text
    for row in look.rows:
        assert html.escape(row.title) in text and row.title in out.getvalue()
        for strips in row.parts.values():
            for strip in strips:
                assert all(f"<bdi class=r>{html.escape(piece)}</bdi>" in text for piece in strip.lines["reads"])
                assert set(strip.lines) <= {line.split()[0] for line in out.getvalue().splitlines() if line} | {
                    "weight",
                    "prefix",
                }


@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_of_a_pretraining_is_what_it_trains_on(name, corpus, tmp_path):
    run = run_of(*CASES[name], corpus)
    found = reading.read(run, "train", progress=False)
    index = found.numbers(3)
    batch = found.batch(index)
    recipe = recipes.recipe(run)
    expected = recipe.rows(run, recipe.data(run, progress=False))["train"].rows(Position(0, 0, 8).of(2))
    jax.tree.map(np.testing.assert_array_equal, batch, expected)

    rows = found.shown(index)
    assert [row.title.split(",")[0] for row in rows] == [f"row {i}" for i in range(16, 24)]
    assert all(f"of step 3 of {run.train.steps:,}" in row.title for row in rows)
    assert [row.title.rsplit(" ", 1)[1] for row in rows].count("long") == 6  # 3 to 1
    contrastive = isinstance(run.objective, config.Contrastive)
    told = (lambda target: "(its vector)") if contrastive else found.pieces.text
    check_shown(rows, batch, found.pieces, told)
    about = reading.explained(found.run)
    assert about[0].startswith(f"{config.kind_of(type(run.objective))}: ")
    check_drawn(Look(name, about, rows[:2]), tmp_path)


def test_the_batch_is_that_of_the_runs_own_source(corpus):
    """Assembled as a run is, whose source is asked for its second step."""
    run = run_of(*CASES["encdec_spans"], corpus)
    recipe = recipes.recipe(run)
    parts = assemble(run, recipe, progress=False)
    source = recipe.source(parts, Position(0, 0, 8), range(1, 2))
    found = reading.read(run, "train", progress=False)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(source(1, None)), found.batch(found.numbers(2)))


def test_held_out_rows_are_those_of_every_source(corpus):
    found = reading.read(run_of(*CASES["decoder_causal"], corpus), "holdout", progress=False)
    rows = found.shown(np.array([0, found.count - 1]))
    assert rows[0].title == f"held-out row 0 of {found.count}, of source long"
    assert rows[-1].title == f"held-out row {found.count - 1} of {found.count}, of source short"
    run = run_of(*CASES["decoder_causal"], corpus)
    with pytest.raises(UserError, match="nothing is held out: raise data.holdout"):
        reading.read(replace(run, data=replace(run.data, holdout=0.0)), "holdout", progress=False)


def test_shares_of_a_run_counted_row_by_row(corpus):
    run = run_of(*CASES["encoder_masked"], corpus)
    found = reading.read(run, "train", progress=False)
    shares = counts.shares(found.batch, found.rows.sources, [found.numbers(step) for step in (1, 2, 3)], 2)
    expected = np.zeros((2, 3), int)
    for i in range(24):
        row = found.rows.rows(np.array([i]))
        source = 0 if found.shown(np.array([i]))[0].title.endswith("long") else 1
        expected[source] += 1, (row.encoder.segments > 0).sum(), int(row.weights.sum())
    assert [[s.rows, s.read, s.asked] for s in shares] == expected.tolist()
    assert expected[:, 0].tolist() == [18, 6]
    sizes, steps = found.rows.sizes, run.train.steps
    assert reading.epochs(found) == pytest.approx({"long": steps * 6 / sizes["long"], "short": steps * 2 / sizes["short"]})


@pytest.mark.parametrize(
    ("method", "group", "draws", "steps"),
    [("grpo", 4, 1, [[0, 1], [2, 3]]), ("dapo", 2, 3, [[0, 3, 6, 9], [12, 15, 18, 21]])],
)
def test_questions_of_a_policys_steps(method, group, draws, steps):
    """A question has `group` samples and, where others may take its place, `draws` numbers."""
    run = config.Run(
        small_model("decoder"), recipe=config.Policy(method, group=group, draws=draws), train=config.Train(batch_size=8)
    )
    found = reading.Reading(run, SimpleNamespace(), None, "train")
    assert [found.numbers(step).tolist() for step in (1, 2)] == steps
    each = 8 // group * draws
    assert [found.step_of(number) for number in range(2 * each)] == [1] * each + [2] * each
    assert found.count == each * run.train.steps


def test_an_objective_is_told_with_its_settings_and_its_parts():
    parts = {
        "r": config.Part(config.SpanCorruption(), weight=3.0, mode="R"),
        "x": config.Part(config.Masked(rate=0.5), weight=1.0),
    }
    told = reading.explained(config.Run(small_model("encoder_decoder"), objective=config.Mixture(parts)))
    assert told[1] == "  r: 75.0% of the pieces, mode R, span_corruption (rate=0.15, mean_span=3.0, prefix=True, roll=False)"
    assert told[2].startswith("  x: 25.0% of the pieces, masked (rate=0.5, ")
    records = reading.explained(config.Run(small_model("decoder"), recipe=config.Finetune("text", length=9)))
    assert records[0].startswith("finetune: Train on labelled records") and "length=9" in records[1]
    for predict, asked in dict(replaced="every token", masked="these tokens").items():
        objective = config.ReplacedTokens(small_model("encoder"), predict=predict)
        told = reading.explained(config.Run(small_model("encoder"), objective=objective))
        assert told[1].endswith(f"the model then answers for {asked}") and f"predict={predict}" in told[2]
    run = config.Run(small_model("decoder"), recipe=config.Distill("x"))
    assert reading.explained(run)[0].startswith("causal: ")
    pairs = config.Data(sources={"a": config.Source("jsonl", "x", format="pair")})
    assert reading.explained(replace(run, data=pairs))[0].startswith("distill: ")


# ------------------------------------------------------------------------------------------------------------- records


def on_records(what, corpus, sources, **changes):
    """A run from the seed, of a small model, on records."""
    model = small_model(changes.pop("architecture", "decoder"))
    given = config.Tokenizer(path=f"{corpus}/tokenizer.model")
    data = config.Data(sources=sources, holdout=0.3, cache=f"{corpus}/cache", tokenizer=given)
    train = config.Train(steps=50, batch_size=4)
    return config.Run(model, replace(data, **changes), train=train, recipe=what)


def lines(corpus, name, records):
    (corpus / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return f"{corpus}/{name}.jsonl"


def labelled(corpus):
    records = [{"text": f"a text of number {i}", "label": ("even", "odd")[i % 2]} for i in range(60)]
    return {"mine": config.Source("jsonl", lines(corpus, "labelled", records), format="labelled")}


def messages(corpus):
    turns = lambda i: [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"I say {i}."}]
    records = [{"messages": turns(i) + turns(i + 1)} for i in range(60)]
    return {"mine": config.Source("jsonl", lines(corpus, "messages", records), format="messages")}


def preferences(corpus):
    records = [{"prompt": f"say {i}", "chosen": f"I say {i}.", "rejected": f"no {i}"} for i in range(60)]
    return {"mine": config.Source("jsonl", lines(corpus, "preferences", records), format="preference")}


@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder_decoder"])
def test_a_fine_tuning_by_head_shows_classes(architecture, corpus, tmp_path):
    run = on_records(config.Finetune(length=32), corpus, labelled(corpus), architecture=architecture)
    found = reading.read(run, "train", progress=False)
    rows, batch = found.shown(np.arange(4)), found.batch(np.arange(4))
    check_shown(rows, batch, found.pieces, lambda target: f"class {('even', 'odd')[target]}")
    for row in rows:  # the class is that of the number in the text
        ((*_, last),) = row.parts.values()
        number = int("".join(c for c in "".join(last.lines["reads"]) if c.isdigit()))
        assert [t for t in last.lines["predicts"] if t != "·"] == [f"class {('even', 'odd')[number % 2]}"]
    check_drawn(Look("x", [], rows), tmp_path)


@pytest.mark.parametrize("packing", [False, True])
def test_conversations_have_loss_at_what_the_assistant_says(packing, corpus, tmp_path):
    run = on_records(config.Finetune("text", length=80, answer=20), corpus, messages(corpus), packing=packing)
    run = replace(run, data=replace(run.data, decoder_length=200 if packing else None))
    found = reading.read(run, "train", progress=False)
    rows = found.shown(np.arange(3))
    check_shown(rows, found.batch(np.arange(3)), found.pieces, found.pieces.text)
    for row in rows:
        ((strip,),) = row.parts.values()
        assert (max(strip.segments) > 1) == packing
        read, said = "".join(strip.lines["reads"]), "".join(t for t in strip.lines["predicts"] if t != "·")
        assert said.count("<|end|>") == 2 * max(strip.segments) == said.count("I␣say␣") and "<|user|>" not in said
        assert read.count("<|user|>") == 2 * max(strip.segments)
    check_drawn(Look("x", [], rows), tmp_path)


@pytest.mark.parametrize("recipe", [config.Reward(length=40, answer=20), config.Preference("simpo", length=40, answer=20)])
def test_pairs_are_shown_side_by_side(recipe, corpus, tmp_path):
    run = on_records(recipe, corpus, preferences(corpus))
    found = reading.read(run, "train", progress=False)
    rows, batch = found.shown(np.arange(3)), found.batch(np.arange(3))
    told = found.pieces.text if isinstance(recipe, config.Preference) else lambda target: "(its reward)"
    check_shown(rows, batch, found.pieces, told)
    for row in rows:
        assert row.facts == {"margin": "0"}
        text = {name: "".join(strip.lines["reads"]) for name, (strip,) in row.parts.items()}
        assert "I␣say" in text["chosen"] and "no␣" in text["rejected"]
    check_drawn(Look("x", [], rows), tmp_path)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("finetune", labelled),
        ("finetune:labelled.text", labelled),
        ("my_labels", labelled),
        ("life/sft", messages),
        ("life/reward", preferences),
        ("life/preference:orpo", preferences),
    ],
)
def test_configs_of_records_on_a_model_from_the_seed(name, source, corpus, tmp_path):
    file, _, argument = name.partition(":")
    run = resolve.load(f"{ROOT}/configs/{file}.py" + (f":{argument}" if argument else ""))
    given = config.Tokenizer(path=f"{corpus}/tokenizer.model")
    data = replace(run.data, sources=source(corpus), tokenizer=given, holdout=0.3, cache=f"{corpus}/cache")
    run = replace(run, model=small_model("decoder"), data=data, train=replace(run.train, init_from=None))
    found = reading.read(run, "train", progress=False)
    rows, batch = found.shown(found.numbers(1)[:4]), found.batch(found.numbers(1)[:4])
    check_shown(rows, batch, found.pieces, reading.target_text(found.run, found.data, found.pieces))
    assert rows[3].title == f"row 3, of step 1 of {run.train.steps:,}, of source mine"
    check_drawn(Look(name, reading.explained(found.run), rows), tmp_path)


@pytest.mark.parametrize(("name", "shown"), [("encoder_vit", "class red"), ("clip_openmoji", "a red thing")])
def test_pictures_are_counted_beside_their_class_or_caption(name, shown, tmp_path):
    image = pytest.importorskip("PIL.Image")
    with (tmp_path / "records.jsonl").open("w", encoding="utf-8") as out:
        for i in range(12):
            image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
            colour = ("red", "blue")[i % 2]
            out.write(json.dumps({"image": f"{i}.png", "text": f"a {colour} thing {i}", "label": colour}) + "\n")
    run = resolve.load(f"{ROOT}/configs/{name}.py", {})
    source = config.Source("jsonl", str(tmp_path / "records.jsonl"), format="captioned")
    words = config.Tokenizer("word", run.data.tokenizer.vocab_size)
    run = replace(run, data=replace(run.data, sources={"mine": source}, tokenizer=words, cache=str(tmp_path)))
    view = reading.read(run, "train", progress=False)
    rows = view.shown(np.arange(8))
    texts = [text.plain for one in rows for text in terminal.row_texts(one, 100, ids=False)]
    assert sum("64 vectors of 192 numbers, read at 65 places" in text for text in texts) == 8
    words = " ".join(" ".join(texts).replace("␣", " ").split())
    assert shown in words and ", of source mine" in rows[0].title
