"""Architecture x objective, as Table 2 of T5 (arXiv 1910.10683) has it, at equal model FLOPs."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study, Task, mean_of
from lm import config

# (architecture, layers in each stack, shared, prefix attention) and T5's GLUE / SQuAD / SuperGLUE under denoising and LM.
ARCHITECTURES = {
    "encdec": ("encoder-decoder", ("encoder_decoder", 4, False), (83.28, 80.88, 71.36), (79.56, 76.02, 64.29)),
    "shared": ("encoder-decoder, shared", ("encoder_decoder", 4, True), (82.81, 80.63, 70.73), (79.60, 76.35, 63.50)),
    "half": ("encoder-decoder, half the layers", ("encoder_decoder", 2, False), (80.88, 77.59, 68.42), (78.67, 75.32, 64.06)),
    "causal": ("causal decoder", ("decoder", 4, False), (74.70, 61.14, 55.02), (73.78, 53.81, 56.51)),
    "prefix": ("prefix decoder", ("decoder", 4, False), (81.82, 78.94, 68.11), (79.68, 76.87, 64.86)),
}
TASKS = tuple(
    Task(name, "text", config.Finetune(steps=120, batch_size=16, length=length, rows=500))
    for name, length in (("questions", 32), ("sentiment", 48), ("spans", 96))
)

PARTS = ("questions/accuracy", "sentiment/accuracy", "spans/f1")


def cells() -> dict[str, Cell]:
    out = {}
    for name, (label, (architecture, layers, shared), _, _) in ARCHITECTURES.items():
        model = small.model(architecture, layers=layers, shared=shared)
        both_ways = name != "causal"
        lm = config.Prefix() if both_ways else config.Causal()
        denoise = config.SpanCorruption(prefix=both_ways)
        for kind, objective, places in (("denoise", denoise, 40), ("lm", lm, small.LENGTH)):
            run = small.run(model, objective, decoder_length=places)
            facts = {"architecture": label, "objective": {"denoise": "denoising", "lm": "LM"}[kind]}
            out[f"{name}_{kind}"] = Cell(f"{label}, {facts['objective']}", run, facts, scores=("suffix", "infill"), tasks=TASKS)
    return out


def study(seeds: int = 3, budget: float = 6e12, match: str = "flops") -> Study:
    """The relations of the table whose gap is three of its standard deviations or more, and the equivalence it reports."""
    average, questions, spans = "downstream/average", "questions/accuracy", "spans/f1"
    table = "T5, Table 2, GLUE"

    def glue(cell: str) -> float:
        name, _, kind = cell.partition("_")
        return ARCHITECTURES[name][2 if kind == "denoise" else 3][0]

    def greater(better: str, than: str, metric: str = average, primary: bool = True) -> Relation:
        labels = (cells_[better].label, cells_[than].label)
        published = (glue(better), glue(than))
        return Relation(f"{labels[0]} > {labels[1]}", metric, better, than, source=table, published=published, primary=primary)

    cells_ = cells()
    relations = (
        greater("encdec_denoise", "encdec_lm"),
        greater("prefix_denoise", "causal_denoise"),
        greater("encdec_denoise", "causal_denoise"),
        greater("encdec_denoise", "causal_lm"),
        greater("prefix_lm", "causal_lm"),
        greater("encdec_denoise", "half_denoise"),
        Relation(
            "shared = unshared, denoising",
            average,
            "shared_denoise",
            "encdec_denoise",
            kind="equivalent",
            margin=0.02,
            source=table,
            published=(glue("shared_denoise"), glue("encdec_denoise")),
        ),
        greater("encdec_denoise", "encdec_lm", questions, primary=False),
        greater("encdec_denoise", "encdec_lm", spans, primary=False),
        greater("prefix_denoise", "causal_denoise", questions, primary=False),
        greater("prefix_denoise", "causal_denoise", spans, primary=False),
    )
    metrics = (
        Metric(average, "average of the tasks"),
        Metric(questions, "questions, accuracy"),
        Metric("sentiment/accuracy", "sentiment, accuracy"),
        Metric(spans, "span extraction, F1"),
        Metric("suffix/bits_per_byte", "suffix, bits per byte", higher=False),
        Metric("infill/bits_per_byte", "infill, bits per byte", higher=False),
    )
    title = "Architecture and objective (T5, Table 2)"
    return Study("t5_table2", title, cells_, seeds, metrics, relations, match, budget, derive=mean_of(PARTS))
