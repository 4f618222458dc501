"""Invalid config values: each is refused before anything is prepared, with a one-line error that names the field."""

from tests.campaign.bench import Bench, Injection, refused

L = "model.decoder.blocks.L"
# (flags without --config., what the error must name)
VALUES = [
    ("train.steps=2147483648", "steps"),
    ("train.steps=-3", "steps"),
    ("train.steps=1e3", "steps"),
    ("train.steps=True", "steps"),
    ("train.steps=", "steps"),
    ("train.batch_size=0", "batch_size"),
    ("train.microbatches=-1", "microbatches"),
    ("train.seed=-1", "seed"),
    ("train.seed=1180591620717411303424", "seed"),
    ("train.max_skipped=0", "max_skipped"),
    ("train.z_loss=-1.0", "z_loss"),
    ("train.init_from=/nowhere/at/all", "init_from|/nowhere/at/all"),
    ("optimizer.learning_rate=-0.1", "learning_rate"),
    ("optimizer.learning_rate=1e999", "learning_rate"),
    ("optimizer.b1=1.0", "b1"),
    ("optimizer.b2=1.0", "b2"),
    ("optimizer.b2=-0.5", "b2"),
    ("optimizer.eps=-1e-8", "eps"),
    ("optimizer.weight_decay=-1.0", "weight_decay"),
    ("optimizer.clip=0.0", "clip"),
    ("optimizer.ema=1.0", "ema"),
    ("optimizer.name=sgdd", "name"),
    ("optimizer.schedule.warmup=-5", "warmup"),
    ("optimizer.schedule.final=-0.1", "final"),
    ("optimizer.schedule.kind=wsd optimizer.schedule.decay=-2", "decay"),
    ("optimizer=5", "optimizer"),
    ("model.vocab_size=0", "vocab_size"),
    ("model.width=0", "width"),
    ("model.width=33", "width|heads"),
    ("model.decoder.num_layers=0", "num_layers"),
    ("model.decoder.pattern=", "pattern"),
    ("model.decoder.pattern=LX", "pattern"),
    ("model.decoder.blocks={}", "blocks"),
    ("model.decoder.position.max_length=0", "max_length"),
    ("model.decoder.dropout=1.0", "dropout"),
    (f"{L}.attention.num_heads=0", "num_heads"),
    (f"{L}.attention.num_heads=3", "heads"),
    (f"{L}.attention.num_kv_heads=3", "kv_heads"),
    (f"{L}.attention.head_dim=-4", "head_dim"),
    (f"{L}.attention.window=0", "window"),
    (f"{L}.attention.softcap=0.0", "softcap"),
    (f"{L}.attention.dropout=-0.1", "dropout"),
    (f"{L}.ffn.hidden=0", "hidden"),
    (f"{L}.norm.eps=-1.0", "eps"),
    (f"{L}.attention.rope.theta=0.0", "theta"),
    ("data.holdout=1.0", "holdout"),
    ("data.holdout=-0.1", "holdout"),
    ("data.train_share=0.0", "train_share"),
    ("data.dedup.near=5.0", "near"),
    ("data.dedup.permutations=0", "permutations"),
    ("data.clean.min_chars=-1", "min_chars"),
    ("data.tokenizer.vocab_size=-1", "vocab_size"),
    ("data.sources={}", "sources"),
    ("data.sources.tiny.weight=1e999", "weight"),
    ("data.sources.tiny.kind=parquet", "kind"),
    ("data.sources.tiny.path=https://example.org/a.jsonl", "https"),
    ("data.sources.tiny.encoding=utf-9", "encoding"),
    ("data.decoder_length=0", "decoder_length"),
    ("data.decoder_length=-8", "decoder_length"),
    ("checkpoint.keep=0", "keep"),
    ("checkpoint.every=0", "every"),
    ("evaluate.rows=0", "rows"),
    ("evaluate.batch_size=0", "batch_size"),
    ("evaluate.baselines=True data.holdout=0.0", "baselines|holdout"),
    ("log.every=0", "every"),
    ("log.temperature=-1.0", "temperature"),
    ("log.sample_tokens=-4", "sample_tokens"),
    ("log.sample_tokens=1000", "sample_tokens|positions"),
    ("mesh.data=0", "mesh|data"),
    ("mesh.data=-2", "mesh|data"),
    ("mesh.tensor=-1 mesh.fsdp=-1", "mesh"),
    ("mesh.tensor=7 mesh.data=1", "mesh"),
    ("objective.kind=span_corruption objective.rate=1.5", "rate"),
    ("objective.kind=span_corruption objective.mean_span=0.0", "mean_span"),
    (".x=1", "config"),
    ("train..steps=1", "config"),
    ("train.steps=" + "(" * 500, "steps"),
]
ENCODER = [
    ("objective.rate=1e999", "rate"),
    ("objective.rate=-0.2", "rate"),
    ("objective.mask=0.9 objective.random=0.9", "mask"),
    ("data.encoder_length=None", "encoder_length"),
]


def _refused(words: str, cause: str, what: str, *more: str) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.folder()
        said = bench.train(workdir, *(f"--config.{word}" for word in words.split()), *more, what=what)
        assert not list(workdir.glob("checkpoints/*")), "began to save"
        return refused(said, cause)

    shown = words if len(words) < 80 else words[:40] + "..."
    return Injection("config", f"`{shown}`" + " under --dry_run" * bool(more), run)


def _file(name: str, content: bytes, cause: str) -> Injection:
    def run(bench: Bench) -> str:
        path = bench.folder().with_name(name)
        path.write_bytes(content)
        return refused(bench.call("lm.train", f"--config={path}", f"--workdir={path}.run"), cause)

    return Injection("config file", f"`{name}`", run)


FILES = [
    _file("none.py", b"def get_config():\n    return None\n", "none.py"),
    _file("list.py", b"def get_config():\n    return [1]\n", "list.py"),
    _file("exit.py", b"def get_config():\n    raise SystemExit(0)\n", "exit.py"),
    _file("syntax.py", b"def get_config(:\n", "syntax.py"),
    _file("latin.py", b"cafe = 'caf\xe9'\ndef get_config():\n    return {}\n", "latin.py"),
    _file("config.txt", b"def get_config():\n    return {}\n", "config.txt"),
    _file("deep.json", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "deep.json"),
    _file("nan.json", b'{"train": {"z_loss": NaN}}', "nan.json|z_loss"),
    _file("bare.json", b"17", "bare.json|config"),
    _file("bytes.json", b"\xff\xfe\x00", "bytes.json"),
]
INJECTIONS = [
    *(_refused(words, cause, "decoder.causal") for words, cause in VALUES),
    *(_refused(words, cause, "encoder.masked") for words, cause in ENCODER),
    _refused("optimizer.b2=1.0", "b2", "decoder.causal", "--dry_run"),
    _refused("data.dedup.near=5.0", "near", "decoder.causal", "--dry_run"),
    *FILES,
]
