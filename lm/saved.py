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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from etils import epath

from lm import config, integrity, layout, paths, untrusted
from lm.checkpoint import MODEL, STEP
from lm.config import resolve
from lm.data import tokenizer as tokenizers
from lm.errors import UserError, printable
from lm.models import adapters
from lm.models.transformer import Transformer, abstract_params, boxed_params

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
        if self.run is not None and self.run.adapter is not None:
            return self._merged(self.run.adapter, target, fresh, beside)
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

    def base(self) -> "Saved":
        """Opens the model that a run's adapters belong to. UserError if it is gone, or is not what it was."""
        assert self.run is not None and self.run.adapter is not None
        cure = f"put it back, or give its copy: python -m lm.convert merge {self.folder} NEW --base=COPY"
        try:
            base = open(str(self.run.train.init_from), name="train.init_from")
        except UserError as error:
            raise UserError(f"{self.folder} has adapters of a model that cannot be opened ({error}): {cure}") from None
        check_base(base, self.run.adapter.digest, cure=cure)
        return base

    def _merged(
        self, lora: config.Lora, target: Any, fresh: Mapping[str, Any], beside: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """`params` of a run with adapters: the base's, with the adapters added in float32, and what was trained in full."""
        if "model" in target and not (beside and target.keys() == {"model", *beside}):
            raise UserError(
                f"{self.folder} has adapters of a single model: take a run of the same objective without an adapter"
            )
        if "model" in target:
            return {"model": self.params(target["model"]), **(beside or {})}
        own, whole = self.adapters(target, fresh)
        under = boxed_params(Transformer(self.model))
        under = {name: x for name, x in under.items() if name in target and name not in whole.keys() | fresh.keys()}
        rest = {name: x for name, x in target.items() if name not in whole}
        params = self.base().params(rest, fresh=dict.fromkeys(whole) | dict(fresh))
        return {**adapters.added({name: params[name] for name in under}, own, under, lora), **whole, **fresh}

    def adapters(self, target: Any = None, fresh: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the A and B of a run with adapters, as NumPy arrays by the paths of their matrices, and the top-level
        parameters that it trained in full, as `params` would, without the names in `fresh`."""
        assert self.run is not None and self.run.adapter is not None
        tree, boxed = self._checkpoint / "state", boxed_params(Transformer(self.model))
        target = abstract_params(self.model) if target is None else target
        with ocp.PyTreeCheckpointer() as checkpointer:
            names = layout.described(checkpointer.metadata(tree).item_metadata.tree)
        inside = ["ema" if any(name.startswith("ema/") for name in names) else "params"]
        above = {name.split("/")[1] for name in names if name.startswith(f"{inside[0]}/")}
        several = any(name.startswith(f"{inside[0]}/{adapters.ADAPTERS}/model/") for name in names)
        whole = set() if several else above - {adapters.ADAPTERS} - (fresh or {}).keys()
        under = {name: x for name, x in boxed.items() if several or name not in above}
        lora = self.run.adapter
        shapes = jax.eval_shape(lambda: nn.unbox(adapters.init(jax.random.key(0), under, lora)))
        own = _restored(self.folder, tree, [*inside, adapters.ADAPTERS, *(["model"] * several)], shapes, {})
        if not whole:
            return own, {}
        full = _restored(self.folder, tree, inside, {name: target[name] for name in whole}, dict.fromkeys(above - whole))
        return own, {name: full[name] for name in whole}

    def digest(self) -> str:
        """SHA-256 of the list of all files' digests: what a run that needs this model again remembers of it."""
        folder = self.folder if self.step is None else self._checkpoint
        return hashlib.sha256((folder / integrity.DIGESTS).read_bytes()).hexdigest()

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


def open(given: str | Path | epath.Path, *, name: str = "--from", base: str | None = None) -> Saved:  # noqa: A001  as `saved.open`
    """Opens the folder of a run or a converted model, without reading the parameters. Warns of damaged later checkpoints.
    `base`: the folder of the model under its adapters, if that is no longer where the run had it.

    UserError, which names the flag or config key `name`, if the folder is neither or has no intact checkpoint.
    """
    in_bucket = str(given).startswith("gs://")
    folder = epath.Path(str(given) if in_bucket else paths.local(str(given), name=name))
    label = f"{name}={given}"
    entries = _entries(folder, label)
    if MODEL in entries:
        check_files(folder, MODEL)
        model = resolve.build_saved(config.Model, untrusted.parse_json((folder / MODEL).read_bytes(), folder / MODEL))
        return Saved(folder, model, None, None)
    steps = _steps(folder / "checkpoints") if "checkpoints" in entries else []
    if not steps:
        raise UserError(f"{label} {_what_else(folder, entries)}")
    step, faults = integrity.latest(folder / "checkpoints", steps, cure="train it again")
    for damaged, fault in faults.items():
        text = f"checkpoint {folder / 'checkpoints' / str(damaged)} is damaged: {fault}; step {step} is read instead"
        warnings.warn(printable(text), stacklevel=2)
    settings = json.loads((folder / "checkpoints" / str(step) / "config" / "metadata").read_bytes())
    run = resolve.build_saved(config.Run, settings)
    if base is not None:
        run = replace(run, train=replace(run.train, init_from=base))
    return Saved(folder, run.model, run, step)


def last(given: str | Path | epath.Path, count: int, *, name: str = "--from") -> list[Saved]:
    """A run's last `count` checkpoints, the latest first. UserError if it keeps fewer, or one of them is damaged."""
    run = open(given, name=name)
    if run.step is None:
        raise UserError(f"{name}={given} is a converted model, which has no checkpoints: give a run")
    steps = sorted(step for step in _steps(run.folder / "checkpoints") if step <= run.step)
    if not 1 <= count <= len(steps):
        raise UserError(
            f"{name}={given} keeps {len(steps)} checkpoints, and the last {count} are asked for: give a number from 1 to "
            f"{len(steps)}, or train it with a higher checkpoint.keep"
        )
    for step in steps[-count:]:
        if fault := integrity.damage(run.folder / "checkpoints" / str(step), step=step):
            raise UserError(f"checkpoint {run.folder / 'checkpoints' / str(step)} is damaged: {fault}; ask for fewer")
    return [replace(run, step=step) for step in steps[: -count - 1 : -1]]


def check_base(base: Saved, digest: str | None, *, cure: str) -> None:
    """Raises UserError if a model is not the one that adapters were trained beside, whose `digest` is given (None: unknown)."""
    if digest not in (None, base.digest()):
        raise UserError(f"{base.folder} has changed since adapters were trained beside it (SHA-256 {digest[:8]}): {cure}")


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
