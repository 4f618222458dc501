"""Reads a saved model: `saved.open(folder)` of a run's workdir or of a converted model, local or gs://.

    pretrained = saved.open("runs/quickstart")
    pretrained.model                      lm.config.Model
    pretrained.params(device=device)      the parameters on a device; their average (EMA) if the run keeps one
    pretrained.tokenizer()                lm.data.tokenizer.Tokenizer
    pretrained.run                        lm.config.Run; None for a converted model

The latest intact checkpoint of a run is read. Every file is compared with its digest before it is used.
"""

import base64
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lm import config, integrity, layout, paths, untrusted
from lm.checkpoint import MODEL, STEP
from lm.config import resolve
from lm.data import tokenizer as tokenizers
from lm.errors import UserError, printable
from lm.models.transformer import abstract_params

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model")  # in hf/ of a converted model, by preference
CONVERT = "python -m lm.convert from_hf"


@dataclass(frozen=True)
class Saved:
    """A saved model. `step` is the step of the checkpoint that is read. `run` and `step` are None for a converted model."""

    folder: epath.Path
    model: config.Model
    run: config.Run | None
    step: int | None

    @property
    def _checkpoint(self) -> epath.Path:
        return self.folder / "checkpoints" / str(self.step)

    def params(
        self,
        target: Any = None,
        *,
        device: jax.Device | None = None,
        fresh: Mapping[str, Any] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the parameters in the dtypes and shardings of `target` (abstract; default: the parameters of `model` on
        `device`), as NumPy arrays if it has no shardings. UserError if names or shapes differ from the target's.

        `fresh` is `{name: parameters}` for top-level names, such as a new head: nothing is read or compared below these, and
        the given parameters are returned there. All other names must be both saved and in the target.

        A run that trains several models saves them by name, and calls the main one "model". A target without these names gets
        that one. A target with them gets the single model of another run as "model", and `beside` has the rest: `{name:
        parameters}`, such as heads that begin beside it.
        """
        target, fresh = abstract_params(self.model, device) if target is None else target, fresh or {}
        if self.step is None:
            check_files(self.folder, "params")
            tree, inside, several = self.folder / "params", [], False
        else:
            tree = self._checkpoint / "state"
            with ocp.PyTreeCheckpointer() as checkpointer:
                names = layout.described(checkpointer.metadata(tree).item_metadata.tree)
            inside = ["ema" if any(name.startswith("ema/") for name in names) else "params"]
            several = any(name.startswith(f"{inside[0]}/model/") for name in names)
        if "model" in target and not several and beside and target.keys() == {"model", *beside}:
            return {"model": self.params(target["model"]), **beside}
        if "model" in target and not several:
            others = " and ".join(f"'{name}'" for name in sorted(target.keys() - {"model"}))
            raise UserError(
                f"{self.folder} has a single model, and no parameters for {others}; take a run of the same objective"
            )
        return _restored(self.folder, tree, inside + ["model"] * (several and "model" not in target), target, fresh)

    def carried(self, name: str) -> bytes | None:
        """Returns a file in hf/ of a converted model, such as its chat template; None if it has none of this name."""
        if self.step is not None or not (self.folder / "hf" / name).exists():
            return None
        check_files(self.folder, f"hf/{name}")
        return (self.folder / "hf" / name).read_bytes()

    def tokenizer_bytes(self) -> bytes | None:
        """Returns the tokenizer file of a run, or the one in hf/ of a converted model; None if it has none."""
        if self.step is not None:
            return base64.b64decode(json.loads((self._checkpoint / "tokenizer" / "metadata").read_bytes())["sentencepiece"])
        return next((data for name in TOKENIZERS if (data := self.carried(name)) is not None), None)

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Returns the tokenizer. UserError if the folder has none."""
        data = self.tokenizer_bytes()
        if data is None:
            names = ", ".join(TOKENIZERS)
            raise UserError(f"{self.folder} has no tokenizer; put that of this model into {self.folder / 'hf'} ({names})")
        return tokenizers.from_bytes(data)


def open(given: str | Path | epath.Path, *, name: str = "--from") -> Saved:  # noqa: A001  read as `saved.open`
    """Opens the folder of a run or a converted model, without reading the parameters. Warns of damaged later checkpoints.

    UserError, which names the flag or config key `name`, if the folder is neither or has no intact checkpoint.
    """
    in_bucket = str(given).startswith("gs://")
    folder = epath.Path(str(given) if in_bucket else paths.local(str(given), name=name))
    label = f"{name}={given}"
    entries = _entries(folder, label)
    if MODEL in entries:
        check_files(folder, MODEL)
        model = resolve.build(config.Model, untrusted.parse_json((folder / MODEL).read_bytes(), folder / MODEL))
        return Saved(folder, model, None, None)
    steps = _steps(folder / "checkpoints") if "checkpoints" in entries else []
    if not steps:
        raise UserError(f"{label} {_what_else(folder, entries)}")
    step, faults = integrity.latest(folder / "checkpoints", steps, cure="train it again")
    for damaged, fault in faults.items():
        text = f"checkpoint {folder / 'checkpoints' / str(damaged)} is damaged: {fault}; step {step} is read instead"
        warnings.warn(printable(text), stacklevel=2)
    settings = json.loads((folder / "checkpoints" / str(step) / "config" / "metadata").read_bytes())
    run = resolve.build(config.Run, settings)
    return Saved(folder, run.model, run, step)


def is_run(folder: epath.PathLike) -> bool:
    """Whether a folder has checkpoints of a run, intact or not."""
    return bool(_steps(epath.Path(folder) / "checkpoints"))


def _entries(folder: epath.Path, label: str) -> set[str]:
    """Returns the names in a folder. UserError if it cannot be listed."""
    try:
        if not folder.exists():
            raise UserError(f"{label} does not exist; give a run's workdir or a converted model")
        if not folder.is_dir():
            raise UserError(f"{label} is a file; give the folder of the run or model, such as {folder.parent}")
        return {path.name for path in folder.iterdir()}
    except ImportError as error:
        raise UserError(f"{label} needs gcsfs ({error}): pip install gcsfs") from error
    except OSError as error:
        raise UserError(f"{label} cannot be read ({error.strerror or error}); fix that, or give another") from error


def _steps(folder: epath.Path) -> list[int]:
    return [int(p.name) for p in folder.iterdir() if STEP.fullmatch(p.name) and p.is_dir()] if folder.is_dir() else []


def _what_else(folder: epath.Path, entries: set[str]) -> str:
    """Describes a folder that is neither a run nor a converted model, and what to give instead: the end of an error."""
    parent = folder.parent
    if not entries:
        return "is an empty folder; give a run's workdir or a converted model"
    if {"state", "config"} <= entries:
        return f"is one checkpoint of a run; give the run's workdir, {parent.parent}: its latest intact checkpoint is read"
    if _steps(folder):
        return f"holds the checkpoints of a run; give the run's workdir, {parent}"
    if folder.name in ("params", "hf") and (parent / MODEL).exists():
        return f"is a part of a converted model; give the model's folder, {parent}"
    if "params" in entries:
        return f"is an unfinished conversion (no {MODEL}); convert it again: {CONVERT} SOURCE {folder}"
    weights = any(name.endswith(".safetensors") or (name.startswith("pytorch_model") and ".bin" in name) for name in entries)
    if weights or "model_type" in _json(folder / "config.json"):
        return f"is a Hugging Face folder that is not converted: {CONVERT} {folder} NEW, and give NEW"
    if "study.json" in entries:
        return f"is the folder of a study; give one of its runs, such as {folder / 'CELL' / 'seed0' / 'run'}"
    if "config.json" in entries:
        return "is a run without a checkpoint; train it until it saves one"
    return f"is neither a converted model (no {MODEL}) nor a run (no checkpoints/)"


def _json(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or {} if it has none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _restored(folder: epath.Path, directory: epath.Path, inside: list[str], target: Any, fresh: Mapping[str, Any]) -> Any:
    """Restores the subtree at the keys `inside` of an Orbax directory, and adds `fresh`, whose names are not read.

    UserError if names or shapes differ from those of `target`: Orbax itself skips arrays that are not in the target and
    returns placeholders for those not saved.
    """
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved: Any = checkpointer.metadata(directory).item_metadata.tree
        for key in inside:
            saved = saved[key]
        saved, target = ({name: below for name, below in tree.items() if name not in fresh} for tree in (saved, target))
        names = layout.described(saved, dtypes=False)
        first = layout.is_first(names, folder)
        if wrong := layout.differences(names, layout.described(target, dtypes=False)):
            raise UserError(
                f"the parameters in {folder} are of another model: {wrong}. Take the model that they were saved from"
            )
        item = layout.to_first(target) if first else target
        for key in reversed(inside):
            item = {key: item}
        args = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
        restored = checkpointer.restore(directory, args=args)
        for key in inside:
            restored = restored[key]
        return {**(layout.to_current(restored) if first else restored), **fresh}


def check_files(folder: epath.Path, below: str) -> None:
    """Compares files of a converted model with their digests: the file `below`, or all files in that folder.

    UserError for the first that is changed or missing. New files in `hf/` are allowed, since a tokenizer may be put there by
    hand. Older conversions have digests of `params/` only.
    """
    try:
        listing = untrusted.parse_json((folder / integrity.DIGESTS).read_bytes(), folder / integrity.DIGESTS)
    except FileNotFoundError:
        raise UserError(f"{folder / integrity.DIGESTS} is missing: the conversion was not finished; convert it again") from None
    if MODEL not in listing:
        listing = {f"params/{name}": digest for name, digest in listing.items()}
    listed = {name: digest for name, digest in listing.items() if name == below or name.startswith(f"{below}/")}
    found = {name: digest for name, digest in _digests(folder, below).items() if below == "params" or name in listed}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            raise UserError(f"{folder / name} was changed or cut short; convert it again")


def _digests(folder: epath.Path, below: str) -> dict[str, str]:
    """Returns {path relative to `folder`: SHA-256} for the file `below`, or all files in that folder; {} if missing."""
    path = folder / below
    if path.is_dir():
        return {f"{below}/{name}": digest for name, digest in integrity.digests(path).items()}
    return {below: hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {}
