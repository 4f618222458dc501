"""Errors that give the new name when an old name of a command, module or config key is used. docs/releases.md has the rules."""

import importlib.abc
from collections.abc import Sequence
from typing import Any

from lm.errors import UserError

COMMANDS = {  # python -m <old> -> the command that replaces it
    "lm.data.prepare": "python -m lm.prepare --config=FILE",
    "lm.recipes.finetune": "python -m lm.train --config=configs/finetune.py:TASK --config.train.init_from=D --workdir=E",
}
MODULES = {  # old name -> new name, of modules that a config file or a script may import
    "lm.foreign": "lm.untrusted",
    "lm.ranges": "lm.config.ranges",
    "lm.replaced": "lm.losses.replaced",
    "lm.resolve": "lm.config.resolve",
    "lm.shell": "lm.cli and lm.process",
    "lm.shown": "lm.redact",
    "lm.whole": "lm.integrity",
    "lm.data.clean": "lm.data.corpus.clean",
    "lm.data.dedup": "lm.data.corpus.dedup",
    "lm.data.intact": "lm.data.corpus.integrity",
    "lm.data.pairs": "lm.data.examples",
    "lm.data.prepare": "lm.data.corpus.prepare",
    "lm.data.sotu": "lm.data.corpus.sotu",
    "lm.data.sources": "lm.data.corpus.sources",
    "lm.data.stages": "lm.data.corpus.stages",
    "lm.data.store": "lm.data.corpus.store",
    "lm.data.trial": "lm.data.tokenizer_check",
    "lm.data.words": "lm.data.word_boundaries",
    "lm.convert.families": "lm.conversion.families",
    "lm.convert.files": "lm.conversion.files",
    "lm.convert.naming": "lm.conversion.naming",
    "lm.convert.settings": "lm.conversion.settings",
    "lm.convert.tables": "lm.conversion.tables",
    "lm.convert.unpickle": "lm.conversion.unpickle",
    "lm.evaluate.answers": "lm.evaluation.qa_metrics",
    "lm.evaluate.baselines": "lm.evaluation.baselines",
    "lm.evaluate.comparable": "lm.evaluation.spans",
    "lm.evaluate.heldout": "lm.evaluation.heldout",
    "lm.evaluate.ways": "lm.objectives.prompts",
    "lm.evaluate.xz": "lm.evaluation.xz",
    "lm.generate.decoding": "lm.generation.engine",
    "lm.generation.decoding": "lm.generation.engine",
    "lm.generate.diffusion": "lm.generation.diffusion",
    "lm.generate.rank": "lm.generation.rank",
    "lm.generate.samples": "lm.generation.samples",
    "lm.models.products": "lm.models.matmul",
    "lm.models.splash": "lm.models.kernels.splash",
    "lm.models.tiny": "lm.models.miniature",
    "lm.objectives.marks": "lm.objectives.special_tokens",
    "lm.objectives.middle": "lm.objectives.fim",
    "lm.objectives.standin": "lm.objectives.dummy_vocabulary",
    "lm.objectives.stretch": "lm.objectives.mass",
    "lm.recipes.ledger": "lm.training.ledger",
    "lm.recipes.resume": "lm.training.resume",
    "lm.recipes.tasks": "lm.training.task",
    "lm.train.goodput": "lm.training.goodput",
    "lm.train.hooks": "lm.training.hooks",
    "lm.train.jsonl": "lm.training.jsonl",
    "lm.train.loop": "lm.training.loop",
    "lm.train.report": "lm.training.report",
    "lm.train.rundir": "lm.training.rundir",
    "lm.train.step": "lm.training.step",
}

KEYS = {  # Section.field -> the field of the same section that replaces it; or, with dots, a key below the root
    "Finetune.steps": "train.steps",
    "Finetune.batch_size": "train.batch_size",
    "Finetune.learning_rate": "optimizer.learning_rate",
    "Finetune.warmup": "optimizer.schedule.warmup",
    "Finetune.weight_decay": "optimizer.weight_decay",
    "Finetune.rows": "evaluate.rows",
}


class Finder(importlib.abc.MetaPathFinder):
    """The last finder on `sys.meta_path`: raises ImportError with the new name of a module that no other finder found.

    Python asks finders for submodules of packages only, so `lm.train`, `lm.evaluate`, `lm.generate` and `lm.convert`, which are
    modules now, have an empty `__path__`.
    """

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in MODULES:
            raise ImportError(f"{fullname} is {MODULES[fullname]} now: import that", name=fullname)


def check_command(words: Sequence[str]) -> None:
    """UserError if `words`, the interpreter's command line (`sys.orig_argv`), runs a command by its old name."""
    for i, word in enumerate(words[1:], 1):
        if word.startswith("-m") and not word.startswith("--"):
            name = word[2:] or next(iter(words[i + 1 :]), "")
            if name in COMMANDS:
                raise UserError(f"python -m {name} is another command now: {COMMANDS[name]}")
            return
