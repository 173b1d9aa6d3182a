#!/usr/bin/env bash
# The whole chain on this machine's default device: doctor, tune, bundle, text, speed, report.
# Everything it writes goes to out/demo; what was measured stays there, so a second run is short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kernelforge=.venv/bin/kernelforge
out=out/demo
models=(runtime/demo/*.safetensors)
model=${models[0]}
seconds=${DEMO_SECONDS:-75}
# A second run goes on where the first one stopped: a short look is enough.
[[ -d $out/tuned ]] && seconds=${DEMO_SECONDS:-15}

say() { printf '\n== %s\n' "$*"; }

mkdir -p "$out"
say "doctor: what this machine has"
"$kernelforge" doctor

say "tune: the demo model's own problems, $seconds seconds at most"
"$kernelforge" tune --model "$model" --weights f16 --profile quick --seconds "$seconds" \
  --out "$out/tuned" --journal "$out/journal"
bundle=$(find "$out/tuned" -mindepth 1 -maxdepth 1 -type d | head -n 1)

say "run: text, from the bundle just made"
"$kernelforge" run "$model" "And it came to pass" --tokens 300 --temperature 1 --top-p 0.5 --seed 7 \
  --bundle "$bundle" --stats

say "bench: this bundle against the generic one, in turns"
"$kernelforge" bench "$model" --weights f16 --pp 256 --tg 64 --reps 5 \
  --bundle "$bundle" --compare-bundle generic --journal "$out/journal"

say "report"
"$kernelforge" report "$model" --bundle "$bundle" --journal "$out/journal" --out "$out/report"
