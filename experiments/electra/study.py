"""Replaced-token detection, masked language modelling, and the steps between them (ELECTRA, arXiv 2003.10555, Table 5)."""

from dataclasses import replace

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Finetune, Gate, Metric, Relation, Study, Task
from lm import config

# Cell -> label, `predict` of lm.config.ReplacedTokens (None: masked language modelling), the paper's GLUE score.
ROWS = {
    "electra": ("replaced-token detection", "replaced", 85.0),
    "electra_15": ("replaced-token detection, chosen positions alone", "replaced_chosen", 82.4),
    "bert": ("masked", None, 82.2),
}
JUDGED = "judged/accuracy"
TUNING = Finetune(batch_size=32, length=20, rows=500, labels=2000, seeds=2, grid=((1e-3, 300), (5e-4, 300)))


def cells(steps: int) -> dict[str, Cell]:
    language = villages.language()
    trunk = small.model("encoder", layers=2, vocab_size=language.vocab_size)
    # A generator of a quarter of the width and half of the layers (the paper finds a quarter to a half best, section 3.2) that
    # shares the model's table.
    generator = replace(
        small.model("encoder", width=trunk.width // 4, layers=1, vocab_size=language.vocab_size),
        embed=config.Embed(width=trunk.width),
        head=config.Head(transform="gelu_tanh", norm=config.Norm("rms")),
    )
    binary = replace(trunk, head=config.Head(tied=False, outputs=1, bias=True))
    tasks = (Task("judged", "head", TUNING, villages.records(language, "judged")),)
    out = {}
    for name, (label, predict, _) in ROWS.items():
        objective = config.ReplacedTokens(generator=generator, predict=predict) if predict else config.Masked()
        data = language.data(encoder_length=64)
        run = small.run(binary if predict else trunk, objective, steps=steps, learning_rate=1e-3, data=data)
        out[name] = Cell(label, run, {"objective": label}, tasks=tasks, floor="none")
    return out | {"none": replace(out["bert"], label="no pretraining", facts={"objective": "none"}, share=0.0, floor=None)}


def study(seeds: int = 3, steps: int = 600) -> Study:
    """All cells but `none` read the same number of tokens; a generator comes on top."""

    def greater(better: str, than: str, primary: bool = True) -> Relation:
        published = (ROWS[better][2], ROWS[than][2])
        name = f"{ROWS[better][0]} > {ROWS[than][0]}"
        return Relation(name, JUDGED, better, than, source="ELECTRA, Table 5", published=published, primary=primary)

    relations = (
        greater("electra", "electra_15"),
        greater("electra", "bert"),
        greater("electra_15", "bert", primary=False),
        Relation("masked > no pretraining", JUDGED, "bert", "none", primary=False),
    )
    metrics = (
        Metric(JUDGED, "judgements that are right", floor=True, lines={"chance": 0.5}),
        Metric("judged/nll", "judgements", higher=False, unit="nats"),
        Metric("heldout/accuracy_replaced", "replaced tokens that are found"),
        Metric("heldout/accuracy_kept", "kept tokens that are let be"),
    )
    gates = (
        Gate("the discriminator finds replaced tokens", "heldout/accuracy_replaced", at_least=0.3),
        Gate("the discriminator lets kept tokens be", "heldout/accuracy_kept", at_least=0.8),
        Gate("the masked model fills in masks", "heldout/loss", at_most=villages.UNIGRAM - 1, cells=("bert",)),
    )
    title = "Replaced-token detection against masked language modelling (ELECTRA, Table 5)"
    return Study("electra", title, cells(steps), seeds, metrics, relations, gates=gates)
