#!/bin/bash
# A Slurm array: each task does its part of the manifest on one GPU; a last job joins the parts.
#
#   sbatch tools/cluster/slurm-array.sh
#
# Edit the lines marked `edit`. A task that was ended (time limit, preemption, a broken node) continues where it was when it is
# submitted again: sbatch --array=3,17 ... keeps the numbers, so set SHARDS to the whole array's size.
#SBATCH --job-name=mllmseg
#SBATCH --array=0-15                 # edit: numbers without gaps, from 0
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00              # edit
#SBATCH --requeue
#SBATCH --signal=B:TERM@120          # two minutes to finish what is in flight; it ends with 1 then: submit again
#SBATCH --output=mllmseg-%A_%a.log
set -euo pipefail

MANIFEST=/data/manifest.jsonl        # edit
MODEL=/models/MLLMSeg_InternVL2_5_8B_RES # edit
OUT=/data/masks                      # edit
SHARDS=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}

# The program takes the shell's place, and so gets its signals.
exec mllmseg batch "$MANIFEST" --model "$MODEL" --out "$OUT" --device cuda:0 \
    --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --failures-ok

# When all tasks are done (sbatch --dependency=afterok:JOB --wrap '...'):
#   mllmseg merge "$OUT"/shard-* --out "$OUT/whole"
