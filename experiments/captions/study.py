"""Pictures into texts and back: a decoder that attends to an image's patches against one that has them as a prefix, beside one
that does not see them; and a decoder that draws."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import noto, small
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config, recipes
from lm.config import Attention, Block, Learned, Mlp, Model, Norm, Patches, Rope, Stack
from lm.data.corpus.prepare import prepare
from lm.data.image_questions import guess, main_colour
from lm.data.image_text import CAPTION, DrawnRows, ImageTextRows
from lm.evaluation.image_text import write
from lm.evaluation.qa_metrics import qa_metrics
from lm.evaluation.text_metrics import Answer, score
from lm.losses.cross_entropy import scores
from lm.models.transformer import Transformer, head_params
from lm.saved import Saved

VOCAB, WIDTH, IMAGE, SIZE, TEXT = 512, 64, 64, 8, 40
SIDE = IMAGE // SIZE
CODES, CODE = 256, 16  # of the codebook: vectors, and numbers of each
KINDS = (CAPTION, "group", "colour", "is_colour", "is_group")
DATA = config.Data(
    {"openmoji": config.Source("package", "openmoji", format="captioned")}, tokenizer=config.Tokenizer(vocab_size=VOCAB)
)
BLOCK = Block(Attention(4), Mlp(4 * WIDTH), norm=Norm("rms"), dropout=0.1)
ANSWERS, CHRF = "answers/exact", "caption/chrF"
GAIN = "draws/gain"


def stack(layers: int, *, block: Block = BLOCK, **settings: Any) -> Stack:
    return Stack(layers, {"L": block}, **settings)


def run(model: Model, recipe: Any, *, steps: int, batch_size: int, learning_rate: float) -> config.Run:
    return config.Run(
        model,
        DATA,
        optimizer=config.Optimizer(learning_rate=learning_rate, schedule=small.DECAYING),
        train=config.Train(steps=steps, batch_size=batch_size),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, rows=256, batch_size=64),
        log=config.Log(tensorboard=False),
        recipe=recipe,
    )


def writer(join: Any, *, steps: int, blind: bool = False) -> config.Run:
    """A model that writes about pictures."""
    encoder = stack(2, position=Learned(SIDE**2), stem=Patches(SIZE, IMAGE, class_token=False))
    decoder = stack(2, block=replace(BLOCK, cross=join == "cross"), position=Rope())
    model = Model(VOCAB, WIDTH, encoder, decoder, join=join)
    return run(model, config.ImageText(KINDS, TEXT, blind, shift=4), steps=steps, batch_size=32, learning_rate=2e-3)


def coder(*, steps: int) -> config.Run:
    """The autoencoder whose codes are drawn."""

    def model(stem: Patches, outputs: int) -> Model:
        block = replace(BLOCK, dropout=0.0)
        encoder = stack(2, block=block, position=Learned(SIDE**2), stem=stem)
        return Model(VOCAB, WIDTH, encoder, head=config.Head(tied=False, bias=True, outputs=outputs))

    decoder = model(Patches(1, SIDE, CODE, class_token=False), 3 * SIZE**2)
    recipe = config.ImageCodes(decoder, config.Codebook(CODES, CODE), shift=4)
    encoder = model(Patches(SIZE, IMAGE, class_token=False), CODE)
    return run(encoder, recipe, steps=steps, batch_size=16, learning_rate=3e-3)


def drawer(*, steps: int) -> config.Run:
    """A decoder that draws."""
    model = Model(VOCAB + CODES, WIDTH, decoder=stack(3, position=Learned(TEXT + SIDE**2)), head=config.Head(tied=False))
    return run(model, config.Drawing("unset", text=TEXT), steps=steps, batch_size=32, learning_rate=2e-3)


def study(seeds: int = 3, steps: int = 500, coded: int = 400, drawn: int = 250) -> Study:
    cells = {
        "cross": Cell("cross-attention", writer("cross", steps=steps), measure=written),
        "prefix": Cell("image as a prefix", writer("prefix", steps=steps), measure=written),
        "blind": Cell("cross-attention to black images", writer("cross", steps=steps, blind=True), measure=written),
        "codes": Cell("autoencoder", coder(steps=coded)),
        "draws": Cell("draws its codes", drawer(steps=drawn), reads={"recipe.codes": "codes"}, measure=fitting),
    }
    source = "arXiv 2405.02246, section 3.2"
    relations = (
        Relation("answers are read off the image", ANSWERS, "cross", "blind"),
        Relation("captions are read off the image", CHRF, "cross", "blind"),
        Relation("answers are read off images of another font", f"noto/{ANSWERS}", "cross", "blind", primary=False),
        Relation("prefix > cross-attention, answers", ANSWERS, "prefix", "cross", primary=False, source=source),
        Relation("prefix > cross-attention, captions", CHRF, "prefix", "cross", primary=False, source=source),
    )
    metrics = (
        Metric(ANSWERS, "right answers about held-out pictures", chance="answers/guess"),
        Metric(CHRF, "captions of held-out pictures, chrF", unit="0 to 100"),
        Metric("caption/BLEU", "captions of held-out pictures, BLEU", unit="0 to 100"),
        Metric("caption/exact", "right names of held-out pictures"),
        Metric("group/exact", "right groups", chance="group/guess"),
        Metric("colour/exact", "right main colours", chance="colour/guess"),
        Metric(f"noto/{ANSWERS}", "right answers about images of another font", chance="noto/answers/guess"),
        Metric(f"noto/{CHRF}", "captions of images of another font, chrF", unit="0 to 100"),
        Metric("noto/group/exact", "right groups of images of another font", chance="noto/group/guess"),
        Metric("noto/colour/exact", "right main colours of images of another font", chance="noto/colour/guess"),
        Metric("heldout/psnr", "pictures made of their codes", unit="dB", comparable=False),
        Metric(GAIN, "nats a code that the right caption saves over another's", unit="nats", comparable=False),
    )
    gates = (Gate("a caption says what is drawn", GAIN, at_least=0.0, cells=("draws",)),)
    return Study("captions", "Pictures into texts and back", cells, seeds, metrics, relations, gates=gates)


def rows_of(model: Saved) -> Any:
    """The held-out rows of a run."""
    assert model.run is not None
    kind = recipes.recipe(model.run)
    run = kind.complete(model.run, None)
    return kind.rows(run, prepare(run.data, tokenizer=kind.tokenizer, progress=False))


def written(model: Saved) -> Measured:
    """What the model writes about all held-out pictures; as `noto/...`, about the same ones of another font."""
    splits: dict[str, ImageTextRows] = rows_of(model)
    rows, train = splits["holdout"], splits["train"]
    params, best = model.params(device=jax.local_devices()[0]), guess([train.asked(i) for i in range(4 * train.count)])
    metrics, items = dict[str, float](), dict[str, np.ndarray]()
    for prefix, asked in (("", rows), ("noto/", in_noto(model, rows))):
        found = of_rows(Transformer(model.model), params, asked, best)
        metrics |= {prefix + name: value for name, value in found.metrics.items()}
        items |= {prefix + name: values for name, values in found.items.items()}
    return Measured(metrics, items)


def in_noto(model: Saved, rows: ImageTextRows) -> ImageTextRows:
    """The same names and groups, of images as another font draws them; main colours are those of its pixels."""
    assert model.run is not None
    data = prepare(model.run.data, progress=False)
    records: Any = [record for name in model.run.data.sources for record in data.records(name, "holdout")]
    pixels = noto.draw([record.image for record in records], IMAGE)
    of = rows.images.described
    described = [replace(one, colour=main_colour(drawn)) for one, drawn in zip(of, pixels, strict=True)]
    shifted = copy.copy(rows)
    shifted.images = replace(rows.images, pixels=pixels, described=described)
    return shifted


def of_rows(network: Transformer, params: Any, rows: ImageTextRows, best: Callable[[str], str]) -> Measured:
    """Scores of captions, right answers of each kind and of all, and those of `best`, the best guesses without the picture."""
    index = list(range(rows.count))
    texts = write(network, params, rows, index, slots=64)
    asked, kinds = [rows.asked(i) for i in index], np.array([rows.kind(i) for i in index])
    guessed = [best(pair.question) for pair in asked]
    right = qa_metrics(texts, [pair.answer for pair in asked])["exact"]
    by_guess = qa_metrics(guessed, [pair.answer for pair in asked])["exact"]
    captions = [Answer(texts[i], (asked[i].answer,)) for i in index if kinds[i] == CAPTION]
    found = score(captions)
    metrics, items = {CHRF: found["chrF2"].value, "caption/BLEU": found["BLEU"].value}, {}
    for kind in (*rows.kinds, "answers"):
        mine = kinds != CAPTION if kind == "answers" else kinds == kind
        items[f"{kind}/exact"] = right[mine]
        metrics[f"{kind}/guess"] = float(by_guess[mine].mean())
    return Measured(metrics | {name: float(values.mean()) for name, values in items.items()}, items)


def fitting(model: Saved) -> Measured:
    """Nats a code of held-out pictures after their own captions, and after that of another picture less these."""
    splits: dict[str, DrawnRows] = rows_of(model)
    rows = splits["holdout"]
    network, params = Transformer(model.model), model.params(device=jax.local_devices()[0])
    settings: dict[str, Any] = dict(head_params=head_params, vocab_size=model.model.vocab_size)
    nats = jax.jit(lambda batch: scores(params, network.apply, batch, **settings)["loss"])
    others = replace(rows.images, described=np.roll(np.array(rows.images.described, object), 1).tolist())
    mismatched = DrawnRows(others, rows.codes, rows.builder.tokenizer, first=rows.first, text=rows.text, seed=0, shuffle=False)
    found = []
    for of in (rows, mismatched):
        parts = [nats(jax.tree.map(jnp.asarray, of.rows(np.arange(i, i + 64)))) for i in range(0, of.count, 64)]
        found.append(sum(float(part.total) for part in parts) / sum(float(part.weight) for part in parts))
    return Measured({"draws/nats": found[0], GAIN: found[1] - found[0]})
