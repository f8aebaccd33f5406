#!/bin/sh
# One shard per task of the array; the same job again continues. On the login node, before it:
#     minigdino download grounding-dino-tiny
#     SHARDS=100 sbatch --array=1-100 examples/slurm.sh images.csv "a cat. a dog." found
# Some tasks again, such as those of failed nodes. SHARDS stays the number of all shards:
#     SHARDS=100 sbatch --array=7,12 examples/slurm.sh images.csv "a cat. a dog." found
# After the last task:
#     minigdino merge found --parquet found.parquet

#SBATCH --job-name=minigdino
#SBATCH --cpus-per-task=16
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=minigdino-%A-%a.log

set -eu
export HF_HUB_OFFLINE=1  # no task downloads

# exec: the signals of Slurm reach minigdino. A killed task loses the images in the making, and no others
exec minigdino run "$1" "$2" --out "$3" --model "${MINIGDINO_MODEL:-grounding-dino-tiny}" \
    --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" --workers "$SLURM_CPUS_PER_TASK" --threads 1 \
    --allow-errors
