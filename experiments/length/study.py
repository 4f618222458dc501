"""Copying lists that are longer than any in training, by position scheme (arXiv 2305.19466)."""

from dataclasses import replace

from experiments import small
from experiments.languages import lengths
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

ROW, WIDTH = 128, 64
PAPER = "arXiv 2305.19466"
POSITIONS: dict[str, config.Position | None] = {
    "none": None,
    "rope": config.Rope(),
    "alibi": config.Alibi(),
    "learned": config.Learned(ROW),
    "sinusoidal": config.Sinusoidal(),
}


def study(seeds: int = 3) -> Study:
    language = lengths.language()
    cells = {}
    for name, position in POSITIONS.items():
        # Embeddings as large as the sinusoids that are added to them (arXiv 1706.03762, section 3.4).
        large = dict(embed=config.Embed(scale=WIDTH**0.5), embed_init_std=WIDTH**-0.5)
        changes = large if name == "sinusoidal" else {}
        model = small.model("decoder", width=WIDTH, layers=3, vocab_size=language.vocab_size, **changes)
        model = replace(model, decoder=replace(model.decoder, position=position))
        data = language.data(decoder_length=ROW)
        run = small.run(model, config.Causal(), steps=1200, batch_size=16, learning_rate=3e-3, data=data)
        cells[name] = Cell(name, run, {"positions": name}, items=language.items)
    relations = (
        Relation("without positions, longer lists are copied better than with rotary ones", "near/exact", "none", "rope"),
        Relation("without positions, longer lists are copied better than with sinusoids", "near/exact", "none", "sinusoidal"),
        *(
            Relation(f"without positions, the {which} lists are copied better than with {name}", f"{which}/exact", "none", name)
            for which, name in (("near", "alibi"), ("near", "learned"), ("far", "rope"), ("far", "sinusoidal"))
        ),
    )
    relations = tuple(replace(r, source=PAPER, primary=i < 2) for i, r in enumerate(relations))
    metrics = (
        *(
            Metric(f"{name}/exact", f"lists of {least} to {most} words, exact", lines={"chance": 0.0})
            for name, (least, most) in lengths.RANGES.items()
        ),
        *(
            Metric(f"{name}/accuracy", f"lists of {least} to {most} words, words", lines={"chance": 1 / lengths.WORDS})
            for name, (least, most) in lengths.RANGES.items()
        ),
        Metric("heldout/loss", "held-out loss", higher=False, unit="nats a word"),
    )
    gates = (Gate("lists as long as in training are copied", "inside/exact", at_least=0.9),)
    return Study("length", "Longer lists than in training, by position scheme", cells, seeds, metrics, relations, gates=gates)
