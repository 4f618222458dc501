"""From next tokens to masked diffusion: half of the budget on each, against all of it on the latter (arXiv 2410.17891)."""

from experiments import small
from experiments.languages import grammar
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

LOSS = "heldout/loss"
ANNEAL = 0.5  # of the steps after the change


def study(seeds: int = 3, budget: float = 1.5e12) -> Study:
    language = grammar.language()
    assert language.entropy is not None

    def cell(label: str, objective: config.Objective, share: float, start: str | None = None, to: str = "decoder") -> Cell:
        model = small.model(to, width=64, layers=2, vocab_size=language.vocab_size)
        run = small.run(model, objective, data=language.data(**{f"{to}_length": small.LENGTH}))
        facts = {
            "reads with": f"the {to}",
            "before": "next tokens" if start else "nothing",
            "share of the budget": f"{share:g}",
        }
        init_map = {"encoder": "decoder"} if to == "encoder" and start else {}
        return Cell(label, run, facts, start, share, init_map=init_map)

    diffusion = config.MaskedDiffusion()
    cells = {
        "causal": cell("next token", config.Causal(), 0.5),
        "adapted": cell("next token, then diffusion", diffusion, 0.5, "causal"),
        "annealed": cell("next token, then diffusion, gradually", config.MaskedDiffusion(anneal=ANNEAL), 0.5, "causal"),
        "unshifted": cell("next token, then an encoder's diffusion", diffusion, 0.5, "causal", "encoder"),
        "half": cell("diffusion, half of the budget", diffusion, 0.5),
        "scratch": cell("diffusion", diffusion, 1.0),
    }
    source = "arXiv 2410.17891"
    relations = (
        Relation("from next tokens > nothing before, at the same steps of diffusion", LOSS, "adapted", "half", source=source),
        Relation("half on next tokens first > all on diffusion", LOSS, "adapted", "scratch", source=source),
        Relation("shifted > each token where its mask is", LOSS, "adapted", "unshifted", source=source),
        Relation("seeing what follows gradually > at once", LOSS, "annealed", "adapted", primary=False, source=source),
    )
    metrics = (
        Metric(
            LOSS,
            "held-out loss, or its bound",
            higher=False,
            lines={"single words": grammar.UNIGRAM, "entropy": language.entropy},
            unit="nats a word",
        ),
    )
    gates = (
        Gate("next tokens were learned", LOSS, at_most=2.0, cells=("causal",)),
        Gate("diffusion has learned more than the frequencies of words", LOSS, at_most=grammar.UNIGRAM - 0.5),
    )
    title = "From next tokens to masked diffusion (arXiv 2410.17891)"
    return Study("adapt", title, cells, seeds, metrics, relations, "flops", budget, gates=gates, derive=small.flag_bounds)
