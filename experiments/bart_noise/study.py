"""An encoder-decoder trained with each of BART's noises, and a language model (BART, arXiv 1910.13461, Table 1)."""

from dataclasses import replace

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Finetune, Gate, Metric, Relation, Study, Task
from lm import config

OFF = dict(infill=0.0, permute=0.0)
# Cell -> label, (architecture, layers of a stack), objective, the paper's perplexity on ELI5.
CELLS = {
    "lm": ("language model", ("decoder", 4), config.Causal(), 21.40),
    "infilled": ("text infilling", ("encoder_decoder", 2), config.Denoise(permute=0.0), 24.26),
    "deleted": ("token deletion", ("encoder_decoder", 2), config.Denoise(**OFF, delete=0.15), 24.61),
    "permuted": ("sentence permutation", ("encoder_decoder", 2), config.Denoise(infill=0.0), 41.87),
    "rotated": ("document rotation", ("encoder_decoder", 2), config.Denoise(**OFF, rotate=1.0), 53.69),
}
REST = "rest/nll"
TUNING = Finetune(batch_size=32, length=20, answer=18, rows=300, labels=2000, grid=((1e-3, 200), (3e-3, 200)))


def cells(steps: int) -> dict[str, Cell]:
    """Each with its floor: the same model without pretraining."""
    language = villages.language()
    tasks = (Task("rest", "text", TUNING, villages.records(language, "rest")),)
    out = {}
    for name, (label, (architecture, layers), objective, _) in CELLS.items():
        model = small.model(architecture, width=64, layers=layers, vocab_size=language.vocab_size)
        data = language.data(encoder_length=64 if model.encoder else None, decoder_length=64)
        run = small.run(model, objective, steps=steps, data=data)
        out[name] = Cell(label, run, {"noise": label}, tasks=tasks, floor=f"none_{architecture}")
    for name, cell in (("none_decoder", out["lm"]), ("none_encoder_decoder", out["infilled"])):
        label = name.removeprefix("none_").replace("_", "-") + " without pretraining"
        out[name] = replace(cell, label=label, facts={"noise": "none"}, share=0.0, floor=None)
    return out


def study(seeds: int = 3, steps: int = 600) -> Study:
    """All cells but those without pretraining read the same text."""

    def greater(better: str, than: str, primary: bool = False) -> Relation:
        name, published = f"{CELLS[better][0]} > {CELLS[than][0]}", (CELLS[better][3], CELLS[than][3])
        return Relation(name, REST, better, than, source="BART, Table 1, ELI5", published=published, primary=primary)

    relations = (
        greater("infilled", "rotated", primary=True),
        greater("lm", "infilled", primary=True),
        greater("infilled", "deleted"),
        greater("infilled", "permuted"),
        greater("permuted", "rotated"),
    )
    metrics = (
        Metric(REST, "continuation", higher=False, floor=True, unit="nats a token"),
        Metric("heldout/loss", "held-out loss of its own objective", higher=False, comparable=False, unit="nats a token"),
    )
    gate = Gate(
        "pretraining has left the frequencies of words", "heldout/loss", at_most=villages.UNIGRAM - 1, cells=tuple(CELLS)
    )
    title = "Noises of denoising pretraining (BART, Table 1)"
    return Study("bart_noise", title, cells(steps), seeds, metrics, relations, gates=(gate,))
