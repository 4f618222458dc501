"""Masked against causal as data repeats (arXiv 2507.15857: masked models go on gaining where causal ones overfit)."""

from dataclasses import replace

from experiments import small
from experiments.study import Cell, Metric, Relation, Results, Study
from lm import config

SHARES = (1.0, 0.1, 0.02)  # of the training documents: at the default budget about 1, 10 and 50 epochs
OBJECTIVES = {"causal": ("decoder", config.Causal()), "masked": ("encoder", config.Masked())}


def study(seeds: int = 3, budget: float = 3e6) -> Study:
    cells = {}
    for name, (architecture, objective) in OBJECTIVES.items():
        for share in SHARES:
            run = small.run(small.model(architecture), objective, evaluate_every=100)
            run = replace(run, data=replace(run.data, train_share=share))
            facts = {"objective": name, "documents": f"{share:.0%}"}
            cells[f"{name}_{share:.2f}"] = Cell(f"{name}, {share:.0%} of the documents", run, facts, scores=("infill",))
    relations = tuple(
        Relation(
            f"{share:.0%} of the documents: masked loses less by repetition than causal",
            "loss_by_repetition",
            f"masked_{share:.2f}",
            f"causal_{share:.2f}",
            source="arXiv 2507.15857",
        )
        for share in SHARES[1:]
    )
    metrics = (
        Metric("heldout/loss", "held-out loss of its own objective", higher=False),
        Metric("loss_by_repetition", "held-out loss over that with all documents", higher=False),
        Metric("infill/bits_per_byte", "infill, bits per byte", higher=False),
    )
    title = "Masked and causal as data repeats"
    return Study("repetition", title, cells, seeds, metrics, relations, "seen", budget, derive=relative)


def relative(results: Results) -> Results:
    """Held-out loss as a share of the same objective's loss with every document, by seed: losses of two objectives are no
    measure of each other, but what they lose is."""
    for name in OBJECTIVES:
        for share in SHARES:
            for seed, result in results.get(f"{name}_{share:.2f}", {}).items():
                whole = results.get(f"{name}_{SHARES[0]:.2f}", {}).get(seed)
                if whole:
                    result["metrics"]["loss_by_repetition"] = (
                        result["metrics"]["heldout/loss"] / whole["metrics"]["heldout/loss"]
                    )
    return results
