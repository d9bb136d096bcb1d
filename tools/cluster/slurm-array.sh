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
#SBATCH --signal=B:TERM@120          # two minutes to finish what is in flight
#SBATCH --output=mllmseg-%A_%a.log
set -euo pipefail

MANIFEST=/data/manifest.jsonl        # edit
MODEL=/models/MLLMSeg_InternVL2_5_8B_RES # edit
OUT=/data/masks                      # edit
SHARDS=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}

mllmseg batch "$MANIFEST" --model "$MODEL" --out "$OUT" --device cuda:0 \
    --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" &
pid=$!
trap 'kill -TERM $pid' TERM
status=0
wait $pid || status=$?
# A signal ends `wait`, not the program.
while kill -0 $pid 2>/dev/null; do
    status=0
    wait $pid || status=$?
done
# 3: all done, some items have errors in their lines. 1 after a signal: submit again.
[ $status -eq 3 ] && status=0
exit $status

# When all tasks are done (sbatch --dependency=afterok:JOB --wrap '...'):
#   mllmseg merge "$OUT"/shard-* --out "$OUT/whole"
