"""Repeated data: a causal model overfits where a masked one goes on learning (arXiv 2507.15857)."""

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Gate, Metric, Relation, Results, Study
from lm import config

# At 40 % a masked model has three times the predictions to learn from, so that it is not spared by being slow alone.
OBJECTIVES = {
    "causal": ("decoder", config.Causal()),
    "masked": ("encoder", config.Masked()),
    "masked at 40 %": ("encoder", config.Masked(rate=0.4)),
}
SHARES = {"unique": 1.0, "repeated": 0.02}  # of the training documents: less than one epoch, and 35
LOSS, LOST, LEARNED = "heldout/loss", "loss by repetition", "loss of unique data"


def key(objective: str, amount: str) -> str:
    return f"{objective}_{amount}".replace(" at 40 %", "_40")


def study(seeds: int = 3, steps: int = 500) -> Study:
    """All cells read the same number of tokens."""
    language = villages.language()
    cells = {}
    for name, (architecture, objective) in OBJECTIVES.items():
        for amount, share in SHARES.items():
            model = small.model(architecture, layers=2, vocab_size=language.vocab_size)
            data = language.data(**{f"{architecture}_length": 64}, train_share=share)
            run = small.run(model, objective, steps=steps, evaluate_every=50, evaluate_rows=352, data=data)
            facts = {"objective": name, "documents": f"{share:.0%}"}
            cells[key(name, amount)] = Cell(f"{name}, {share:.0%} of the documents", run, facts)
    source = "arXiv 2507.15857"
    relations = (
        Relation("masked loses less by repetition than causal", LOST, "masked_repeated", "causal_repeated", source=source),
        Relation(
            "masked at 40 % loses less by repetition than causal",
            LOST,
            "masked_40_repeated",
            "causal_repeated",
            source=source,
            primary=False,
        ),
        Relation("causal: unique data > repeated data", LOSS, "causal_unique", "causal_repeated", source=source),
        Relation(
            "masked: repeated data = unique data",
            LOSS,
            "masked_repeated",
            "masked_unique",
            kind="equivalent",
            margin=0.05,
            source=source,
        ),
    )
    metrics = (
        Metric(LOST, "held-out loss, repeated less unique data", higher=False, unit="nats a token"),
        Metric(
            LOSS,
            "held-out loss of its own objective",
            higher=False,
            comparable=False,
            lines={"single words": villages.UNIGRAM},
            unit="nats a token",
        ),
        Metric(LEARNED, "held-out loss with unique data", higher=False, comparable=False, unit="nats a token"),
    )
    gate = Gate("the model of unique data knows more than the frequencies of words", LEARNED, at_most=villages.UNIGRAM - 1)
    title = "Masked and causal as data repeats (arXiv 2507.15857)"
    return Study("repetition", title, cells, seeds, metrics, relations, derive=compared, gates=(gate,))


def compared(results: Results) -> Results:
    """Adds to both cells of an objective the loss with unique data at the same seed, and to that of repeated data how much
    more it has."""
    for name in OBJECTIVES:
        unique, repeated = (results.get(key(name, amount), {}) for amount in SHARES)
        for seed, result in unique.items():
            base = result["metrics"].get(LOSS)  # a diverged run has none
            if base is None:
                continue
            result["metrics"][LEARNED] = base
            if LOSS in (again := repeated.get(seed, {"metrics": {}})["metrics"]):
                again |= {LEARNED: base, LOST: again[LOSS] - base}
    return results
