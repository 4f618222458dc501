"""Masks drawn once for each window, or anew in each epoch (RoBERTa, arXiv 1907.11692, section 4.1), as little data repeats."""

from experiments import small
from experiments.languages import mirror
from experiments.study import Cell, Metric, Relation, Study
from lm import config

LOSS, BATCH = "heldout/loss", 16
SHARES = {"few": 0.04, "many": 0.5}  # of the training documents
MASKS = {"static": False, "dynamic": True}
MARGIN = 0.03  # nats a masked word


def study(seeds: int = 3, steps: int = 600) -> Study:
    language = mirror.language(chain=True)
    model = small.model("encoder", width=64, layers=2, vocab_size=language.vocab_size)
    tokens = mirror.DOCUMENTS * (1 - 1 / mirror.HELDOUT) * (mirror.LENGTH + 2)  # with the ends of documents
    epochs = lambda share: round(steps * BATCH * small.LENGTH / (share * tokens))
    cells = {}
    for size, share in SHARES.items():
        data = language.data(encoder_length=small.LENGTH, train_share=share)
        for name, dynamic in MASKS.items():
            objective = config.Masked(dynamic=dynamic)
            run = small.run(model, objective, steps=steps, batch_size=BATCH, data=data, evaluate_rows=None)
            facts = {"masks": name, "epochs": str(epochs(share))}
            cells[f"{name}_{size}"] = Cell(f"{name} masks, {epochs(share)} epochs", run, facts)
    few, many = (epochs(share) for share in SHARES.values())
    relations = (
        Relation(f"{few} epochs: new masks beat masks that repeat", LOSS, "dynamic_few", "static_few", source="RoBERTa, 4.1"),
        Relation(
            f"{many} epochs: new masks = masks that repeat",
            LOSS,
            "dynamic_many",
            "static_many",
            kind="equivalent",
            margin=MARGIN,
            source="RoBERTa, table 1, where a mask is seen 4 times",
        ),
    )
    metrics = (Metric(LOSS, "held-out masked words", higher=False, unit="nats a masked word"),)
    title = "Static against dynamic masks, as data repeats (RoBERTa)"
    return Study("static_masks", title, cells, seeds, metrics, relations)
