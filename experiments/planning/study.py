"""The path to the end of an arm of a star, by next tokens and by masked diffusion (arXiv 2403.06963, 2412.05117)."""

from functools import partial
from typing import Any

import jax
import numpy as np

from experiments import small
from experiments.languages import paths
from experiments.study import Cell, Derived, Gate, Measured, Metric, Relation, Results, Study, derived_result
from lm import config
from lm.generation.diffusion import fill
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import TokenStream

ARMS, EDGES = 2, 3  # edges of an arm
EXACT, LOSS, LEFT = "path/exact", "heldout/loss", "left"
CELLS: dict[str, tuple[str, str, config.Objective]] = {  # name -> label, architecture, objective
    "causal": ("next token", "decoder", config.Causal()),
    "diffusion": ("masked diffusion", "encoder", config.MaskedDiffusion()),
}


def study(seeds: int = 3, steps: int = 5000) -> Study:
    language = paths.language(ARMS, EDGES)
    cells = {}
    for name, (label, to, objective) in CELLS.items():
        model = small.model(to, width=64, layers=3, vocab_size=language.vocab_size)
        data = language.data(**{f"{to}_length": small.LENGTH}, after="=")
        run = small.run(model, objective, steps=steps, data=data)
        how: dict[str, Any] = dict(measure=filled) if name == "diffusion" else dict(items=dict(language.items))
        cells[name] = Cell(label, run, **how)
    relations = (
        Relation("masked diffusion > next token", EXACT, "diffusion", "causal", source="arXiv 2412.05117"),
        Relation("the surest node first > from left to right", EXACT, "diffusion", LEFT, primary=False),
        Relation("from left to right, masked diffusion = next token", EXACT, LEFT, "causal", "equivalent", 0.05, primary=False),
    )
    metrics = (
        Metric(EXACT, "complete paths", lines={"one of the arms": 1 / ARMS}),
        Metric(LOSS, "held-out loss of the paths", higher=False, comparable=False, unit="nats a token"),
    )
    gate = Gate("the nodes after the first are known", LOSS, at_most=0.35)
    title = "Paths in stars, by next tokens and by masked diffusion (arXiv 2403.06963, 2412.05117)"
    derived = {LEFT: Derived("masked diffusion, from left to right", ("diffusion",))}
    return Study("planning", title, cells, seeds, metrics, relations, derive=by_order, derived=derived, gates=(gate,))


def by_order(results: Results) -> Results:
    """Gives the paths that masked diffusion fills in from left to right a result of their own."""
    for seed, result in small.flag_bounds(results).get("diffusion", {}).items():
        metrics, items = ({EXACT: result[kind][LEFT]} if LEFT in result[kind] else {} for kind in ("metrics", "items"))
        results.setdefault(LEFT, {})[seed] = derived_result(metrics, items)
    return results


def filled(trained: Saved) -> Measured:
    """EXACT and LEFT: whether a held-out path is right if its likeliest nodes are filled in one by one, the surest first or
    from left to right. The end of the text is told."""
    tokenizer: Any = trained.tokenizer()
    texts = tokenizer.encode_batch([" ".join(pair) for pair in paths.heldout(ARMS, EDGES)])
    tokens = np.array([[tokenizer.bos_id, *text, tokenizer.eos_id] for text in texts], np.int32)
    masked = np.zeros_like(tokens, bool)
    masked[:, -1 - EDGES : -1] = True
    blank = np.where(masked, tokenizer.mask_id, tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    stream = TokenStream(blank, positions, np.ones_like(tokens))
    never = np.arange(trained.model.vocab_size) == tokenizer.mask_id
    of = partial(fill, Transformer(trained.model), trained.params(), stream, masked, jax.random.key(0))
    write = lambda order: np.asarray(of(steps=EDGES, order=order, forbidden=never))
    items = {name: (write(order) == tokens).all(axis=1) for name, order in ((EXACT, "confidence"), (LEFT, "left"))}
    return Measured({name: float(right.mean()) for name, right in items.items()}, items)
