#!/bin/sh
# Split locked requirements: torch with what it brings for GPUs, and all the rest. A requirement is a line and its indented hashes.
#   split-requirements.sh ALL TORCH REST
set -eu
awk -v torch="$2" -v rest="$3" '
  /^[A-Za-z0-9]/ { out = ($0 ~ /^(torch==|triton==|nvidia-|cuda-)/) ? torch : rest }
  { print > out }
' "$1"
