#!/usr/bin/env bash
# A job on several GPU nodes of a SLURM cluster, one process per GPU. From the repository root:
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#       train --config configs/lit_imagenet256.py:XL/2 --workdir /shared/runs/lit_xl2
# Arguments go to `python -m lit_jax` unchanged. The same command resumes a stopped job.
#SBATCH --job-name=lit_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start this file with sbatch}"
# jax reads coordinator, process count and process id from the variables srun sets.
export LIT_JAX_DISTRIBUTED=1
srun --kill-on-bad-exit=1 "${LIT_JAX_PYTHON:-.venv/bin/python}" -m lit_jax "$@"
