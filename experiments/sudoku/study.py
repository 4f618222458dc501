"""Sudoku by a model of masked diffusion: the order in which cells are filled in decides (arXiv 2502.06768)."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments import small
from experiments.languages import sudoku
from experiments.study import Cell, Derived, Gate, Measured, Metric, Relation, Results, Study, derived_result
from lm import config
from lm.generation.diffusion import fill
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import TokenStream

SOLVED, RIGHT, LOSS = "solved", "right cells", "heldout/loss"
PUZZLES = 200
ROW = sudoku.CELLS + 2  # tokens of a grid, with bos and eos
GRIDS = 5  # in a row of the training, of which the first and the last are cut: in rows of one, most grids would be in two parts
ROWS_ALONE = 1.09  # nats a token of a model that knows nothing else: ln(6!) / 6 a cell is 1.10
ORDERS: dict[str, tuple[str, Any, int]] = {  # name -> label, order and steps of `lm.generation.diffusion.fill`
    "once": ("all cells at once", "confidence", 1),
    "left": ("from the first cell on", "left", sudoku.CELLS),
    "random": ("in random order", "random", sudoku.CELLS),
    "confidence": ("the surest digit first", "confidence", sudoku.CELLS),
    "margin": ("the largest margin first", "margin", sudoku.CELLS),
}


def study(seeds: int = 3, steps: int = 1000) -> Study:
    """One model for each seed, which fills in the same puzzles in each order."""
    language = sudoku.language()
    model = small.model("encoder", width=96, layers=3, vocab_size=language.vocab_size)
    assert model.encoder
    model = replace(model, encoder=replace(model.encoder, position=config.Learned(GRIDS * ROW)))
    data = language.data(encoder_length=GRIDS * ROW)
    run = small.run(model, config.MaskedDiffusion(), steps=steps, batch_size=10, learning_rate=2e-3, data=data)
    cells = {"model": Cell("the model", run, measure=played)}
    source = "arXiv 2502.06768"
    relations = (
        Relation("the surest digit first > random order", SOLVED, "confidence", "random", source=source),
        Relation("the largest margin first > random order", SOLVED, "margin", "random", source=source),
        Relation("the surest digit first > from the first cell on", SOLVED, "confidence", "left", primary=False, source=source),
        Relation("from the first cell on = random order", SOLVED, "left", "random", "equivalent", 0.1, primary=False),
        Relation("one by one > all cells at once", SOLVED, "random", "once", primary=False),
    )
    metrics = (
        Metric(SOLVED, "solved puzzles"),
        Metric(RIGHT, "right cells of those that were left out", lines={"chance": 1 / sudoku.SIZE}),
        Metric(LOSS, "bound of held-out grids", higher=False, unit="nats a token"),
    )
    gate = Gate("the model knows more than that a row has each digit once", LOSS, at_most=ROWS_ALONE)
    title = "Sudoku by masked diffusion, by order of filling (arXiv 2502.06768)"
    derived = {name: Derived(label, ("model",)) for name, (label, _, _) in ORDERS.items()}
    return Study("sudoku", title, cells, seeds, metrics, relations, derive=orders, derived=derived, gates=(gate,))


def orders(results: Results) -> Results:
    """Gives each order a result of its own, with its puzzles as items."""
    for seed, result in results.get("model", {}).items():
        for name in ORDERS:
            of_order = {kind: _of_order(result[kind], name) for kind in ("metrics", "items")}
            results.setdefault(name, {})[seed] = derived_result(**of_order)
    return results


def _of_order(values: dict[str, Any], order: str) -> dict[str, Any]:
    """Those of one order, under the names that all orders share."""
    return {metric: values[f"{order}/{metric}"] for metric in (SOLVED, RIGHT) if f"{order}/{metric}" in values}


def played(trained: Saved) -> Measured:
    """For each order, `<order>/solved` and `<order>/right cells` of the puzzles, filled in with the likeliest digits."""
    tokenizer: Any = trained.tokenizer()
    digits = np.array([0, *(int(tokenizer.encode(str(d))[0]) for d in range(1, sudoku.SIZE + 1))])
    puzzles, grids = sudoku.puzzles()[:PUZZLES], sudoku.grids()[1][:PUZZLES]
    blank = puzzles == 0
    side = lambda token: np.full((PUZZLES, 1), token)
    rows = np.where(blank, tokenizer.mask_id, digits[puzzles])
    tokens = np.concatenate([side(tokenizer.bos_id), rows, side(tokenizer.eos_id)], axis=1).astype(np.int32)
    positions = np.broadcast_to(np.arange(ROW, dtype=np.int32), tokens.shape)
    stream, masked = TokenStream(tokens, positions, np.ones_like(tokens)), np.pad(blank, ((0, 0), (1, 1)))
    network, params = Transformer(trained.model), trained.params()
    never = ~np.isin(np.arange(trained.model.vocab_size), digits[1:])
    items = {}
    for name, (_, order, steps) in ORDERS.items():
        how: dict[str, Any] = dict(steps=steps, order=order, forbidden=never)
        out = np.asarray(fill(network, params, stream, masked, jax.random.key(0), **how))[:, 1:-1]
        right = ((out == digits[grids]) & blank).sum(axis=1) / blank.sum(axis=1)
        items |= {f"{name}/{SOLVED}": (right == 1).astype(float), f"{name}/{RIGHT}": right}
    return Measured({name: float(values.mean()) for name, values in items.items()}, items)
