"""docs/slurm.sh, with an srun that starts the processes of a step here and tells them what Slurm would."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/slurm.sh"
# Starts $TASKS processes of the command on this machine, as a step of job 5, and ends with the highest of their exit codes. As
# since Slurm 22.05, --cpus-per-task of sbatch is not taken over.
SRUN = """#!/usr/bin/env bash
export SLURM_JOB_ID=5 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=$TASKS
export SLURM_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-1}
pids=()
for ((i = 0; i < TASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
highest=0
for pid in "${pids[@]}"; do code=0; wait "$pid" || code=$?; ((code > highest)) && highest=$code; done
exit "$highest"
"""


@pytest.fixture
def sbatch(tmp_path):
    """Runs the script as a job of so many tasks; `python` is the text of another program of that name. Returns the finished
    process and what was asked of scontrol."""
    shims = tmp_path / "bin"
    shims.mkdir()

    def run(*words, tasks=2, python=None, **environment):
        asked = tmp_path / "scontrol"
        asked.unlink(missing_ok=True)
        programs = {"srun": SRUN, "scontrol": f'#!/bin/sh\necho "$@" >>{asked}\n'}
        programs["python"] = python or f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        for name, text in programs.items():
            (shims / name).write_text(text, encoding="utf-8")
            (shims / name).chmod(0o755)
        env = os.environ | {"PATH": f"{shims}:{os.environ['PATH']}", "TASKS": str(tasks), "SLURM_JOB_ID": "5"} | environment
        done = subprocess.run(["bash", str(SCRIPT), *words], env=env, capture_output=True, text=True, timeout=600)
        return done, asked.read_text(encoding="utf-8").split() if asked.exists() else []

    return run


@pytest.mark.slow
def test_the_processes_of_a_step_find_each_other_and_train_one_run(sbatch, flags, corpus, tmp_path):
    extra = ["--config.train.steps=4", "--config.log.samples=()", "--config.evaluate.every=None"]
    env = dict(JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(corpus / "compiled"), LM_BARRIER_SECONDS="300")
    done, asked = sbatch(*flags("decoder.causal", *extra), f"--workdir={tmp_path / 'run'}", **env)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))["step"] == 4 and asked == []
    mesh = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))["mesh"]
    assert mesh["data"] == 2


@pytest.mark.parametrize(
    "codes, queued", [((0, 0), False), ((75, 75), True), ((69, 2), False), ((0, 75), True), ((1, 130), False)]
)
def test_a_job_is_queued_again_if_it_was_stopped_and_saved(sbatch, codes, queued):
    done, asked = sbatch(python=f'#!/bin/sh\n[ "$SLURM_PROCID" = 0 ] && exit {codes[0]}\nexit {codes[1]}\n')
    assert done.returncode == max(codes) and asked == (["requeue", "5"] if queued else []), done.stderr


@pytest.mark.parametrize("asked, cpus", [({"SLURM_CPUS_PER_TASK": "8"}, "8"), ({}, "1")])
def test_a_task_has_the_cpus_that_the_job_asked_for(sbatch, monkeypatch, asked, cpus):
    for name in ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    done, _ = sbatch(python='#!/bin/sh\necho "$SLURM_CPUS_PER_TASK" "$SRUN_CPUS_PER_TASK"\n', **asked)
    assert done.stdout.splitlines() == [f"{cpus} {cpus}"] * 2, done.stderr


def test_arguments_arrive_as_they_were_given(sbatch):
    done, _ = sbatch("--workdir=a b", "--config.x={'k': '*'}", tasks=1, python='#!/bin/sh\nprintf "%s\\n" "$@"\n')
    assert done.stdout.splitlines() == ["-m", "lm.train", "--workdir=a b", "--config.x={'k': '*'}"]


def test_bash_and_shellcheck_read_it():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
