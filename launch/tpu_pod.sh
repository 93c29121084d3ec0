#!/usr/bin/env bash
# A job on every host of a Cloud TPU slice, from your own machine (needs gcloud and a logged-in account):
#   TPU=my-slice ZONE=my-zone launch/tpu_pod.sh \
#       train --config configs/lit_imagenet256.py:XL/2 --workdir /mnt/shared/lit_xl2
# The repository must already lie in ~/lit_jax of every host with its .venv (see launch/README.md).
# Arguments go to `python -m lit_jax` unchanged. The same command resumes a stopped job.
set -euo pipefail

: "${TPU:?set TPU to the name of the TPU slice}"
: "${ZONE:?set ZONE to the zone of the TPU slice}"

arguments="$(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  cd \"\${HOME}/lit_jax\" && LIT_JAX_DISTRIBUTED=1 .venv/bin/python -m lit_jax $arguments"
