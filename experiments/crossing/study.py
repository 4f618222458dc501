"""Few documents, read again and again: whether masked diffusion falls below next-token prediction (arXiv 2507.15857), and
whether dropout, or leaving tokens out, lowers the loss of the latter (arXiv 2510.09885)."""

from dataclasses import replace
from typing import Any

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Gate, Metric, Relation, Results, Study
from lm import config

SHARE = 0.01  # of the documents
EVERY, EARLY = 50, 100  # steps between two looks at the held-out texts, and those after which few epochs are over
LOST = 0.5  # share of the tokens that are read without their embedding
DROPOUT = 0.3
AFTER_FEW, AFTER_MANY, BEST = "loss after few epochs", "heldout/loss", "lowest loss"
SCHEDULE = config.Schedule("constant", warmup=20)  # a decay would lower the loss of cells that are best at the end
CELLS = {
    "causal": ("next token", "nothing"),
    "dropout": (f"next token, dropout {DROPOUT}", f"dropout {DROPOUT}"),
    "lost": (f"next token, {LOST:.0%} of the tokens left out", f"{LOST:.0%} of the tokens"),
    "diffusion": ("masked diffusion", "its masks"),
}


def study(seeds: int = 3, steps: int = 600) -> Study:
    """All cells read the same number of tokens."""
    language = villages.language()
    cells = {}
    for name, (label, noise) in CELLS.items():
        model = noisy(small.model("decoder", layers=2, vocab_size=language.vocab_size), name)
        objective = config.MaskedDiffusion() if name == "diffusion" else config.Causal()
        data = language.data(decoder_length=64, train_share=SHARE)
        settings: dict[str, Any] = dict(
            learning_rate=2e-3, schedule=SCHEDULE, evaluate_every=EVERY, evaluate_rows=352, data=data
        )
        cells[name] = Cell(label, small.run(model, objective, steps=steps, **settings), {"noise": noise})
    repeats, closes = dict(source="arXiv 2507.15857"), dict(source="arXiv 2510.09885")
    relations = (
        Relation("after few epochs, next token < masked diffusion", AFTER_FEW, "causal", "diffusion", **repeats),
        Relation("after many epochs, masked diffusion < next token", AFTER_MANY, "diffusion", "causal", **repeats),
        Relation("at its best, masked diffusion < next token", BEST, "diffusion", "causal", **repeats),
        Relation("at its best, next token with tokens left out < masked diffusion", BEST, "lost", "diffusion", **closes),
        Relation("at its best, next token with dropout < masked diffusion", BEST, "dropout", "diffusion", primary=False),
        Relation("at its best, next token with tokens left out < next token", BEST, "lost", "causal", primary=False, **closes),
    )
    lines = {"single words": villages.UNIGRAM}
    metrics = tuple(
        Metric(name, f"held-out loss or its bound, {when}", higher=False, lines=lines, unit="nats a word")
        for name, when in (
            (AFTER_FEW, f"after {EARLY} steps"),
            (AFTER_MANY, f"after {steps} steps"),
            (BEST, f"lowest of all {EVERY} steps"),
        )
    )
    gate = Gate("the model has learned more than the frequencies of words", BEST, at_most=villages.UNIGRAM - 1)
    title = "Masked diffusion and next tokens as epochs grow (arXiv 2507.15857)"
    return Study("crossing", title, cells, seeds, metrics, relations, derive=on_the_way, gates=(gate,))


def noisy(model: config.Model, name: str) -> config.Model:
    """The model with the cell's dropout."""
    if name == "lost":
        return replace(model, embed=replace(model.embed, token_dropout=LOST))
    if name != "dropout":
        return model
    assert model.decoder
    block = replace(model.decoder.blocks["L"], dropout=DROPOUT)
    return replace(model, decoder=replace(model.decoder, blocks={"L": block}), embed=replace(model.embed, dropout=DROPOUT))


def on_the_way(results: Results) -> Results:
    """Adds the loss after EARLY steps, and the lowest, and says which are bounds."""
    for name, result in ((name, r) for name, seeds in results.items() for r in seeds.values()):
        if name == "diffusion":
            result["flags"] |= dict.fromkeys((AFTER_FEW, AFTER_MANY, BEST), "an upper bound")
        losses = {point["step"]: point["loss"] for point in result["curve"]}
        if losses:  # a diverged run has none
            result["metrics"] |= {BEST: min(losses.values())}
            result["metrics"] |= {AFTER_FEW: losses[EARLY]} if EARLY in losses else {}
    return results
