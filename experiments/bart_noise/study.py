"""One encoder-decoder under each of BART's noises and as a language model (BART, arXiv 1910.13461, Table 1)."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study, Task
from lm import config

OFF = dict(infill=0.0, permute=0.0)
# The paper's SQuAD F1, MNLI accuracy, ELI5 and XSum perplexity, where it has the same thing.
CELLS = {
    "lm": ("language model", config.Prefix(), (76.7, 80.1, 21.40, 7.00)),
    "masked": ("token masking", config.Denoise(**OFF, mask=0.15), (90.4, 84.1, 25.05, 7.08)),
    "deleted": ("token deletion", config.Denoise(**OFF, delete=0.15), (90.4, 84.1, 24.61, 6.90)),
    "infilled": ("text infilling", config.Denoise(permute=0.0), (90.8, 84.0, 24.26, 6.61)),
    "rotated": ("document rotation", config.Denoise(**OFF, rotate=1.0), (77.2, 75.3, 53.69, 17.14)),
    "permuted": ("sentence permutation", config.Denoise(infill=0.0), (85.4, 81.5, 41.87, 10.93)),
    "both": ("infilling and permutation", config.Denoise(), (90.8, 83.8, 24.17, 6.62)),
}
TASKS = tuple(
    Task(name, "text", config.Finetune(steps=120, batch_size=16, length=length, rows=500))
    for name, length in (("questions", 32), ("spans", 96))
)


def study(seeds: int = 3, budget: float = 6e12, match: str = "flops") -> Study:
    cells = {
        name: Cell(label, small.run(small.model("encoder_decoder", layers=3), objective), {"noise": label}, tasks=TASKS)
        for name, (label, objective, _) in CELLS.items()
    }

    def greater(better: str, than: str, metric: str, column: int) -> Relation:
        published = (CELLS[better][2][column], CELLS[than][2][column])
        source = "BART, Table 1, " + ("SQuAD", "MNLI")[column]
        return Relation(f"{CELLS[better][0]} > {CELLS[than][0]}", metric, better, than, source=source, published=published)

    relations = (
        greater("infilled", "lm", "spans/f1", 0),
        greater("infilled", "rotated", "spans/f1", 0),
        greater("infilled", "permuted", "spans/f1", 0),
        greater("infilled", "rotated", "questions/accuracy", 1),
        greater("infilled", "lm", "questions/accuracy", 1),
        greater("masked", "rotated", "questions/accuracy", 1),
    )
    metrics = (
        Metric("spans/f1", "span extraction, F1"),
        Metric("spans/nll", "span extraction, nats a token", higher=False),
        Metric("questions/accuracy", "questions, accuracy"),
    )
    title = "Noises of denoising pretraining (BART, Table 1)"
    return Study("bart_noise", title, cells, seeds, metrics, relations, match, budget)
