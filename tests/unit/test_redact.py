"""Secrets are removed from what others may read, and everything else stays readable."""

import sys

import pytest

from lm import config
from lm.redact import redacted, redacted_command, redacted_environment
from lm.training import display, rundir

SECRETS = [
    "hf_" + "a1B2" * 8,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 8,
    "sk-proj-" + "a1B2" * 8,
    "AKIA" + "ABCD" * 4,
    "AIza" + "a1B2" * 9,
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_by_shape(secret):
    for text in (secret, f"--note={secret}", f'{{"a": "{secret}"}}', f"https://x.org/?q=1 {secret} and more"):
        assert secret not in redacted(text) and "(redacted)" in redacted(text)
    assert redacted(f"before {secret} after") == "before (redacted) after"


def test_credentials_in_urls_and_headers():
    assert redacted("gs+https://me:pa@ss@host/a/b.jsonl") == "gs+https://(redacted)@host/a/b.jsonl"
    assert redacted("https://token@host/a https://host/b") == "https://(redacted)@host/a https://host/b"
    assert redacted("https://h/a?X-Amz-Signature=0123abc&x=1") == "https://h/a?X-Amz-Signature=(redacted)&x=1"
    assert redacted("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer (redacted)"
    assert redacted("-H 'proxy-authorization:basic bWU6aHVzaA=='") == "-H 'proxy-authorization:basic (redacted)'"
    assert redacted('{"Authorization": "Basic bWU6aHVzaA=="}') == '{"Authorization": "Basic (redacted)"}'


def test_other_text_is_unchanged():
    for text in (
        "--config.data.tokenizer.vocab_size=400",
        "--config=configs/quickstart.py:decoder.causal",
        "runs/a@b/c",
        "https://host/a/b@c",
        "config file: basic settings/described not found",
        "0123456789abcdef0123456789abcdef01234567",
    ):
        assert redacted(text) == text and redacted_command([text]) == [text]


def test_flags():
    words = [
        "train",
        "--token=abc",
        "--hf-token",
        "abc",
        "--api_key",
        "--workdir=runs/a",
        "--config.log.sample_tokens=4",
        "x=y",
    ]
    assert redacted_command(words) == [
        *("train", "--token=(redacted)", "--hf-token", "(redacted)", "--api_key", "--workdir=runs/a"),
        *("--config.log.sample_tokens=4", "x=y"),
    ]
    assert redacted_command(["--config.data.sources.web.path=https://me:pass@host/x"])[0].endswith("=https://(redacted)@host/x")


def test_the_environment():
    hidden = ("LM_PASS", "LM_DB_PWD", "LM_PAT", "LM_HTTP_AUTH", "LM_APIKEY", "LM_ACCESSTOKEN", "lm_secret", "JAX_PASSPHRASE")
    assert set(redacted_environment((name, "value") for name in hidden).values()) == {"(redacted)"}
    kept = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_a=1 --xla_b=2", "LM_PATH": "/x", "LM_PATTERN": "L"}
    assert redacted_environment(kept.items()) == kept


def test_the_manifest_and_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--token=hush", f"--note={SECRETS[0]}"])
    monkeypatch.setenv("LM_DB_PASS", "hush")
    monkeypatch.setenv("LM_PROXY", "http://me:hush@proxy")
    found = rundir.manifest(config.Run(config.Model(8, 8)), data_fingerprint="", tokenizer_fingerprint="", mesh=Mesh)
    assert "hush" not in str(found) and SECRETS[0] not in str(found)
    assert found["environment"]["LM_PROXY"] == "http://(redacted)@proxy"

    display.Display(1, 0).say("a\x1b[31mred\x07\nb\u202e\udc80\r")
    assert capsys.readouterr().err == "a\\x1b[31mred\\x07\nb\\u202e\\udc80\\r\n"


class Mesh:
    shape: dict[str, int] = {}
