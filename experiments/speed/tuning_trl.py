"""trl in `experiments.speed.tuning`: its trainers on the same weights, conversations and questions.

A trainer has a loop of its own. It runs in this thread, and stops after each step until it is asked for more.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.tuning_data import ANSWER, BATCH, GROUP, ROW, SAMPLES

MANY = 10**6  # steps


def tokenizer(folder: Path) -> Any:
    """Words, with the ids that this library has for them; a text is read as bos, its words, eos."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, words[name]) for name in ("<bos>", "<eos>")]
    made.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names)


def conversations(folder: Path) -> Any:
    """The rows of this library: ids, and where the assistant speaks."""
    from datasets import Dataset

    kept = np.load(folder / "conversations/rows.npz")
    ends = np.cumsum(kept["sizes"])[:-1]
    ids, loss = (np.split(kept[name], ends) for name in ("ids", "loss"))
    rows = [dict(input_ids=i.tolist(), assistant_masks=m.astype(int).tolist()) for i, m in zip(ids, loss, strict=True)]
    return Dataset.from_list(rows)


def short(completions: list[str], **rest: Any) -> list[float]:
    """The reward: 1 for an answer of at most 500 characters."""
    return [float(len(text) <= 500) for text in completions]


class Trl:
    """`run(answer)` trains, and calls `answer` after each step that was asked for; see `Ours` for what it is given."""

    def __init__(self, task: str, folder: Path, dtype: str) -> None:
        import torch
        import transformers as hf
        import trl
        from datasets import Dataset

        float_type = torch.bfloat16 if dtype == "bfloat16_weights" else torch.float32
        model = hf.AutoModelForCausalLM.from_pretrained(str(folder / "hf"), dtype=float_type)
        common: dict[str, Any] = dict(
            output_dir=str(folder / f"trl_{task}_{dtype}"),
            use_cpu=True,
            bf16=dtype == "bfloat16",
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            max_steps=MANY,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1000,
            gradient_checkpointing=False,
        )
        self.rollout = 0.0
        if task.startswith("sft"):
            more = dict(packing=True, packing_strategy="wrapped") if task == "sft_packed" else {}
            settings = trl.SFTConfig(per_device_train_batch_size=BATCH, max_length=sum(ROW.values()) - 1, **more, **common)
            data: dict[str, Any] = dict(train_dataset=conversations(folder), processing_class=tokenizer(folder))
            self.trainer = trl.SFTTrainer(model, args=settings, **data)
        else:
            with open(folder / "questions.jsonl", encoding="utf-8") as file:
                questions = [json.loads(line)["question"] for line in file]
            sizes: dict[str, Any] = dict(num_generations=GROUP, max_completion_length=ANSWER, loss_type="grpo")
            settings = trl.GRPOConfig(
                per_device_train_batch_size=SAMPLES, beta=0.04 if task == "grpo_kl" else 0.0, **sizes, **common
            )
            data = dict(
                train_dataset=Dataset.from_list([dict(prompt=q) for q in questions]), processing_class=tokenizer(folder)
            )
            self.trainer = trl.GRPOTrainer(model, reward_funcs=short, args=settings, **data)
            for name in ("_generate", "_calculate_rewards"):
                setattr(self.trainer, name, partial(self._timed, getattr(self.trainer, name)))
        self.tokens = 0
        step = self.trainer.training_step
        self.trainer.training_step = partial(self._counted, step)

    def _timed(self, method: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        out = method(*arguments, **settings)
        self.rollout += time.perf_counter() - start
        return out

    def _counted(self, step: Callable[..., Any], model: Any, inputs: Any, *rest: Any, **settings: Any) -> Any:
        out = step(model, inputs, *rest, **settings)
        read = (
            self.trainer._buffered_inputs[0]["completion_mask"] if "attention_mask" not in inputs else inputs["attention_mask"]
        )
        self.tokens += int(read.sum())
        return out

    def run(self, answer: Callable[[dict[str, float]], int]) -> None:
        """`answer(figures of the steps so far)` returns how many steps to take next; 0 ends."""
        import transformers as hf

        figures, left = self, [0]

        class Stop(hf.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> Any:
                left[0] -= 1
                if left[0] <= 0:
                    seconds = time.perf_counter() - figures.start
                    left[0] = answer(dict(seconds=seconds, rollout=figures.rollout, tokens=float(figures.tokens)))
                    figures.start, figures.rollout, figures.tokens = time.perf_counter(), 0.0, 0
                    control.should_training_stop = left[0] == 0
                return control

        self.trainer.add_callback(Stop())
        self.start = time.perf_counter()
        self.trainer.train()
