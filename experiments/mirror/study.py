"""A causal decoder on a text, and on the same text backwards: the entropy is the same, so the losses should be."""

from experiments import small
from experiments.languages import mirror
from experiments.study import Cell, Metric, Relation, Study
from lm import config

LOSS = "heldout/loss"
MARGIN = 0.02  # nats a word


def study(seeds: int = 3, steps: int = 1000, chain_steps: int = 500) -> Study:
    def cell(label: str, steps: int, *, chain: bool = False, backwards: bool = False) -> Cell:
        language = mirror.language(chain=chain, backwards=backwards)
        data = language.data(decoder_length=small.LENGTH)
        model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
        run = small.run(model, config.Causal(), steps=steps, batch_size=16, data=data, evaluate_rows=None)
        facts = {"language": "chain" if chain else "text", "direction": "backwards" if backwards else "forwards"}
        return Cell(label, run, facts)

    cells = {
        "forwards": cell("text", steps),
        "backwards": cell("text backwards", steps, backwards=True),
        "chain": cell("reversible chain", chain_steps, chain=True),
        "chain_backwards": cell("reversible chain backwards", chain_steps, chain=True, backwards=True),
    }
    relations = (
        Relation(
            "a text backwards is as hard as forwards",
            LOSS,
            "backwards",
            "forwards",
            kind="equivalent",
            margin=MARGIN,
            source="the chain rule",
        ),
        Relation("a text is learned better forwards", LOSS, "forwards", "backwards", source="arXiv 2401.17505"),
        Relation(
            "a reversible chain backwards is as hard as forwards",
            LOSS,
            "chain_backwards",
            "chain",
            kind="equivalent",
            margin=MARGIN,
            planted="null",
        ),
    )
    metrics = (Metric(LOSS, "held-out loss", higher=False, unit="nats a word"),)
    return Study("mirror", "Texts forwards and backwards", cells, seeds, metrics, relations)
