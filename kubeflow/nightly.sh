#!/bin/sh
# Every night: ingest, run, batch-predict, in a folder with photos/ (labelled), new/ (to be predicted) and pipeline.yaml:
#   nightly.sh /data/flowers
# Exit status: 0 done, also if the model was not blessed; else that of the step that failed (docs/nightly.md).
set -eu
folder=$1

imagepipe ingest "$folder/photos" --out "$folder/dataset"

# 3: the model was not blessed, or not pushed. Nothing has failed: what is live stays live.
imagepipe run "$folder/pipeline.yaml" || { status=$?; [ "$status" -eq 3 ] || exit "$status"; }

# By what is live now: the model of tonight, or if that was not blessed the one before. Only what is new is asked about.
imagepipe batch-predict "$folder/serving/flowers" "$folder/new" --out "$folder/scores"
