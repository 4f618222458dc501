#!/usr/bin/env bash
# A run on several nodes under Slurm, a process for each GPU. Arguments are those of lm.train:
#
#   sbatch docs/slurm.sh --config=configs/my_text.py --workdir=/shared/runs/mine
#   sbatch --nodes=4 --time=02:00:00 docs/slurm.sh --config=F --workdir=D      # flags of sbatch go before the script
#
# The environment with lm in it is active where sbatch is called, and, like --workdir, on a disk that all nodes see. The processes
# find each other by what srun tells them. Five minutes before the time is up they get SIGTERM, save and exit with 75, and the job
# is queued again: the same command goes on. Nodes without GPUs: --gpus-per-node=0, and one task for each.
#SBATCH --job-name=lm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

# All tasks of a node see all of its GPUs, and each takes the one with its number: no --gpus-per-task, which would hide the others.
# Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
code=0
srun python -m lm.train "$@" || code=$?
if [ "$code" -eq 75 ]; then # saved, and not done
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
