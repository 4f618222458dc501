"""Weight decay and late generalisation on modular addition (Power et al., arXiv 2201.02177)."""

from experiments import answers, small
from experiments.languages import modular
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

MODULUS = 53
STEPS = 2000
EARLY = 700  # steps after which the taught answers are known
# Name -> label, weight decay, steps.
CELLS = {
    "decay": ("weight decay 1", 1.0, STEPS),
    "none": ("no weight decay", 0.0, STEPS),
    "early": ("weight decay 1, stopped early", 1.0, EARLY),
}
ASKED, TAUGHT = "asked/exact", "taught/exact"


def run(decay: float, steps: int) -> config.Run:
    """A decoder of one layer, trained on the answers alone, as in the paper (appendix A.1.2); its learning rate is 1e-3."""
    language = modular.language(MODULUS)
    source = lambda name, use: config.Source("jsonl", language.items[name], format="pair", use=use)
    sources = {
        "taught_train": source("taught", "train"),
        "taught": source("taught", "holdout"),
        "asked": source("asked", "holdout"),
    }
    return config.Run(
        small.model("decoder", layers=1, vocab_size=language.vocab_size),
        language.data(sources=sources),
        config.Causal(),
        config.Optimizer(
            learning_rate=2e-3, weight_decay=decay, b2=0.98, schedule=config.Schedule("wsd", warmup=10, final=0.0)
        ),
        config.Train(steps=steps, batch_size=128),
        config.Checkpoint(every=None, keep=1, keep_best=False),
        config.Evaluate(every=None, rows=64, batch_size=64),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.Finetune(how="text", length=5, answer=2, prefix=False),
    )


def study(seeds: int = 3) -> Study:
    cells = {
        name: Cell(label, run(decay, steps), {"weight decay": f"{decay:g}", "steps": f"{steps:,}"}, measure=answers.measured)
        for name, (label, decay, steps) in CELLS.items()
    }
    chance = {"chance": 1 / MODULUS}
    metrics = (
        Metric(ASKED, "share of new sums that are right", lines=chance),
        Metric(TAUGHT, "share of taught sums that are right", lines=chance),
        Metric("asked/nats", "new sums, nats a token", higher=False, unit="nats a token"),
    )
    source = "arXiv 2201.02177, figures 1 and 2"
    relations = (
        Relation("weight decay > none, on new sums", ASKED, "decay", "none", source=source),
        Relation(f"{STEPS:,} steps > {EARLY}, on new sums", ASKED, "decay", "early", source=source),
    )
    gates = (Gate("the taught sums are known", TAUGHT, at_least=0.99),)
    title = "Weight decay and late generalisation"
    return Study("grokking", title, cells, seeds, metrics, relations, gates=gates)
