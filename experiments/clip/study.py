"""Pictures and their names in one space (CLIP, arXiv 2103.00020), from 1,104 pictures: retrieval among 268 others."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments import noto, small
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config, recipes, sharding
from lm.data.image_rows import ImageRows
from lm.data.images import Pictures
from lm.evaluation.retrieval import Retrieval, alike, hits
from lm.recipes.two_encoders import Pair
from lm.saved import Saved

LENGTH, WIDTH, SPACE = 24, 96, 64
VOCAB = 512
AT = ("image_to_text@5", "text_to_image@5")


def run(*, batch_size: int = 128, shift: int = 4) -> config.Run:
    block = config.Block(config.Attention(3), config.Mlp(4 * WIDTH), dropout=0.1)
    head = config.Head(tied=False, outputs=SPACE)
    stem = config.Patches(8, 64)
    image = config.Stack(3, {"L": block}, position=config.Learned(stem.length), stem=stem)
    text = config.Stack(3, {"L": block}, position=config.Learned(LENGTH))
    data = config.Data(
        sources={"openmoji": config.Source("package", "openmoji", format="captioned")},
        tokenizer=config.Tokenizer(vocab_size=VOCAB),
        decoder_length=LENGTH,
    )
    return config.Run(
        config.Model(VOCAB, WIDTH, encoder=image, head=head),
        data,
        optimizer=config.Optimizer(learning_rate=1e-3, schedule=small.DECAYING),
        train=config.Train(batch_size=batch_size),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, batch_size=64),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.TwoEncoders(config.Model(VOCAB, WIDTH, decoder=text, head=head), shift=shift),
    )


def study(seeds: int = 3, budget: float = 3e12) -> Study:
    cells = {
        "clip": Cell("batches of 128", run(), {"rows": "128", "shift": "4"}, measure=measured),
        "few": Cell("batches of 16", run(batch_size=16), {"rows": "16", "shift": "4"}, measure=measured),
        "still": Cell("pictures as they are", run(shift=0), {"rows": "128", "shift": "0"}, measure=measured),
        "untrained": Cell("untrained", run(), {"rows": "-", "shift": "-"}, share=0, measure=measured),
    }
    metrics = tuple(
        Metric(f"{test}/{way.replace('5', k)}", f"{name}{font}, among the {k} nearest", chance=f"heldout/chance@{k}")
        for test, font in (("heldout", ""), ("noto", ", of another font"))
        for way, name in zip(AT, ("pictures that find their name", "names that find their picture"), strict=True)
        for k in ("5", "1")
    )
    there, back = (f"heldout/{way}" for way in AT)
    batches = "arXiv 2103.00020, section 2.3; SimCLR, arXiv 2002.05709, figure 9"
    relations = (
        Relation("pictures find their names", there, "clip", "untrained", source="arXiv 2103.00020", planted="effect"),
        Relation("names find their pictures", back, "clip", "untrained", source="arXiv 2103.00020", planted="effect"),
        Relation("more negatives > fewer, at equal FLOPs", there, "clip", "few", source=batches),
        Relation("pictures of another font find their names", f"noto/{AT[0]}", "clip", "untrained"),
        Relation("shifted pictures > as they are", there, "clip", "still", primary=False),
        Relation("shifted pictures > as they are, another font", f"noto/{AT[0]}", "clip", "still", primary=False),
    )
    gates = (Gate("the model finds what it was not shown", there, at_least=0.03, cells=("clip", "few", "still")),)
    title = "Pictures and their names in one space"
    return Study("clip", title, cells, seeds, metrics, relations, "flops", budget, gates=gates)


def measured(model: Saved) -> Measured:
    """Which held-out pictures and names find each other, as `heldout/...`; and as `noto/...`, when another font draws the
    pictures."""
    run: Any = model.run
    recipe = recipes.recipe(run)
    rows: Any = recipe.rows(run, recipe.data(run, progress=False))["holdout"]
    pair, index = Pair(run.model, run.recipe), np.arange(rows.count)
    params = model.params(pair.abstract(rows.rows(index[:1]), jax.local_devices()[0]))
    test = Retrieval(rows, jax.jit(pair.vectors), pair.scale, 64, sharding.make_mesh(run.mesh))
    right, items = alike(rows.records(index)), {}
    for name, tested in {"heldout": test, "noto": replace(test, rows=in_noto(rows))}.items():
        images, texts = tested.vectors(params, index)
        items |= {f"{name}/{way}": found for way, found in hits(images @ texts.T, right).items()}
    return Measured({name: float(found.mean()) for name, found in items.items()}, items)


def in_noto(rows: ImageRows) -> ImageRows:
    """The same rows, of pictures as another font draws them."""
    drawn = {
        name: Pictures(noto.draw([record.image for record in of.records], rows.stem.image), of.records)
        for name, of in rows.pictures.items()
    }
    return replace(rows, pictures=drawn)
