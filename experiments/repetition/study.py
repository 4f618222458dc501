"""Masked and causal pretraining on repeated data (arXiv 2507.15857: masked models still improve where causal ones overfit)."""

from dataclasses import replace

from experiments import small
from experiments.study import Cell, Metric, Relation, Results, Study
from lm import config

SHARES = (1.0, 0.1, 0.02)  # of the training documents: at the default budget about 1, 10 and 50 epochs
SUFFIX, LOST = "suffix/bits_per_byte", "suffix/lost"
OBJECTIVES = {"causal": ("decoder", config.Causal()), "masked": ("encoder", config.Masked())}


def study(seeds: int = 3, budget: float = 3e6) -> Study:
    cells = {}
    for name, (architecture, objective) in OBJECTIVES.items():
        for share in SHARES:
            run = small.run(small.model(architecture), objective, evaluate_every=100)
            run = replace(run, data=replace(run.data, train_share=share))
            facts = {"objective": name, "documents": f"{share:.0%}"}
            cells[f"{name}_{share:.2f}"] = Cell(f"{name}, {share:.0%} of the documents", run, facts, scores=("suffix",))
    relations = tuple(
        Relation(
            f"{share:.0%} of the documents: masked loses less by repetition than causal",
            LOST,
            f"masked_{share:.2f}",
            f"causal_{share:.2f}",
            source="arXiv 2507.15857",
        )
        for share in SHARES[1:]
    )
    metrics = (
        Metric(LOST, "bits per byte lost by repetition", higher=False),
        Metric(SUFFIX, "suffix, bits per byte", higher=False),
        Metric("heldout/loss", "held-out loss of its own objective", higher=False, comparable=False),
    )
    title = "Masked and causal as data repeats"
    return Study("repetition", title, cells, seeds, metrics, relations, "seen", budget, derive=relative)


def relative(results: Results) -> Results:
    """Adds the loss by repetition: bits per byte of suffixes minus those of the same objective and seed with all documents."""
    for name in OBJECTIVES:
        unrepeated = results.get(f"{name}_{SHARES[0]:.2f}", {})
        for share in SHARES:
            for seed, result in results.get(f"{name}_{share:.2f}", {}).items():
                if seed in unrepeated and all(
                    SUFFIX in r["metrics"] for r in (result, unrepeated[seed])
                ):  # a diverged run has none
                    result["metrics"][LOST] = result["metrics"][SUFFIX] - unrepeated[seed]["metrics"][SUFFIX]
    return results
