"""An encoder-decoder trained with each of BART's noises, and a language model (BART, arXiv 1910.13461, Table 1)."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study
from lm import config

OFF = dict(infill=0.0, permute=0.0)
# Cell -> label, (architecture, layers per stack), objective, the paper's (MNLI accuracy, ELI5 perplexity).
CELLS = {
    "lm": ("language model", ("decoder", 6), config.Causal(), (80.1, 21.40)),
    "masked": ("token masking", ("encoder_decoder", 3), config.Denoise(**OFF, mask=0.15), (84.1, 25.05)),
    "deleted": ("token deletion", ("encoder_decoder", 3), config.Denoise(**OFF, delete=0.15), (84.1, 24.61)),
    "infilled": ("text infilling", ("encoder_decoder", 3), config.Denoise(permute=0.0), (84.0, 24.26)),
    "rotated": ("document rotation", ("encoder_decoder", 3), config.Denoise(**OFF, rotate=1.0), (75.3, 53.69)),
    "permuted": ("sentence permutation", ("encoder_decoder", 3), config.Denoise(infill=0.0), (81.5, 41.87)),
    "both": ("infilling and permutation", ("encoder_decoder", 3), config.Denoise(), (83.8, 24.17)),
}
TASKS = ("questions",)
SUFFIX = "suffix/bits_per_byte"


def study(seeds: int = 3, budget: float = 6e12) -> Study:
    how = dict(scores=("suffix",), tasks=small.tasks("text", *TASKS))
    cells = {
        name: Cell(label, small.run(small.model(architecture, layers=layers), objective), {"noise": label}, **how)
        for name, (label, (architecture, layers), objective, _) in CELLS.items()
    }

    def greater(better: str, than: str, metric: str, primary: bool = False) -> Relation:
        column = metric == SUFFIX
        source = "BART, Table 1, " + ("ELI5 perplexity" if column else "MNLI")
        published = (CELLS[better][3][column], CELLS[than][3][column])
        name = f"{CELLS[better][0]} > {CELLS[than][0]}, {'suffix' if column else 'questions'}"
        return Relation(name, metric, better, than, source=source, published=published, primary=primary)

    relations = (
        greater("infilled", "rotated", small.AVERAGE, primary=True),
        greater("infilled", "lm", small.AVERAGE, primary=True),
        greater("lm", "infilled", SUFFIX, primary=True),
        greater("infilled", "permuted", small.AVERAGE),
        greater("masked", "rotated", small.AVERAGE),
        greater("lm", "rotated", SUFFIX),
    )
    metrics = (*small.task_metrics(*TASKS), Metric(SUFFIX, "suffix, bits per byte", higher=False))
    title = "Noises of denoising pretraining (BART, Table 1)"
    return Study("bart_noise", title, cells, seeds, metrics, relations, "flops", budget, derive=small.average(*TASKS))
