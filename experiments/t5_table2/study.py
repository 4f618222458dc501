"""Architectures and objectives of Table 2 of T5 (arXiv 1910.10683), matched by model FLOPs."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study
from lm import config

# Name -> label, (architecture, layers per stack, shared), T5's GLUE under (denoising, language modelling).
ARCHITECTURES = {
    "encdec": ("encoder-decoder", ("encoder_decoder", 4, False), (83.28, 79.56)),
    "shared": ("encoder-decoder, shared", ("encoder_decoder", 4, True), (82.81, 79.60)),
    "half": ("encoder-decoder, half the layers", ("encoder_decoder", 2, False), (80.88, 78.67)),
    "causal": ("causal decoder", ("decoder", 4, False), (74.70, 73.78)),
    "prefix": ("prefix decoder", ("decoder", 4, False), (81.82, 79.68)),
}
KINDS = {"denoise": "denoising", "lm": "LM"}
TASKS = ("questions",)


def cells() -> dict[str, Cell]:
    out = {}
    for name, (label, (architecture, layers, shared), _) in ARCHITECTURES.items():
        model = small.model(architecture, layers=layers, shared=shared)
        both_ways = name != "causal"
        lm = config.Prefix() if both_ways else config.Causal()
        denoise = config.SpanCorruption(prefix=both_ways)
        for kind, objective, length in (("denoise", denoise, 40), ("lm", lm, small.LENGTH)):
            run = small.run(model, objective, decoder_length=length)
            facts = {"architecture": label, "objective": KINDS[kind]}
            # As in the paper, so that half the layers read about as many tokens (5 to 11 % fewer: the head is not halved).
            share = 0.5 if name == "half" else 1.0
            how = dict(scores=("suffix", "infill"), tasks=small.tasks("text", *TASKS))
            out[f"{name}_{kind}"] = Cell(f"{label}, {KINDS[kind]}", run, facts, share=share, **how)
    return out


def study(seeds: int = 3, budget: float = 6e12) -> Study:
    """The primary relations are two whose published gap is at least three of the table's standard deviations, and its
    equivalence."""
    made = cells()

    def relation(better: str, than: str, primary: bool = False, **equivalence: object) -> Relation:
        glue = lambda cell: ARCHITECTURES[cell.split("_")[0]][2][list(KINDS).index(cell.split("_")[1])]
        sign = "=" if equivalence else ">"
        name = f"{made[better].label} {sign} {made[than].label}"
        published = (glue(better), glue(than))
        about = dict(source="T5, Table 2, GLUE", published=published, primary=primary)
        return Relation(name, small.AVERAGE, better, than, **about, **equivalence)

    relations = (
        relation("encdec_denoise", "encdec_lm", primary=True),
        relation("prefix_denoise", "causal_denoise", primary=True),
        relation("shared_denoise", "encdec_denoise", primary=True, kind="equivalent", margin=0.02),
        relation("encdec_denoise", "causal_lm"),
        relation("prefix_lm", "causal_lm"),
        relation("encdec_denoise", "half_denoise"),
        relation("encdec_denoise", "prefix_denoise"),
    )
    metrics = (
        *small.task_metrics(*TASKS),
        Metric("suffix/bits_per_byte", "suffix, bits per byte", higher=False),
        Metric("infill/bits_per_byte", "infill, bits per byte", higher=False),
    )
    title = "Architecture and objective (T5, Table 2)"
    withdrawn = (
        "every cell is below a causal decoder fine-tuned without pretraining, which has 0.83 on question classes answered in "
        "text (one seed). Differences between these cells say nothing about the value of pretraining; no conclusion is drawn "
        "from them until the study is run again with a cell without pretraining."
    )
    derive = small.average(*TASKS)
    return Study("t5_table2", title, made, seeds, metrics, relations, "flops", budget, derive=derive, withdrawn=withdrawn)
