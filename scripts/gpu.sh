#!/usr/bin/env bash
# The same chain for any Vulkan GPU, given only the driver: conformance suite, full tune, bench,
# report; every artefact ends up in one folder.
#
#   OUT=dir        where to (default out/gpu)
#   DEVICE=name    which device (default: the best one)
#   PYTHON=path    interpreter with the packages (default .venv/bin/python)
#   SECONDS_TUNE   time for tuning per weight format (default 300)
#   SPIRV=dir      SPIR-V compiled before on another machine by `gpu.sh compile`; with it no
#                  glslangValidator is needed here
#   PROFILE=file   for compile: what the device can do, as `kernelforge devices --json` prints it
#
#   gpu.sh          run everything
#   gpu.sh compile  compile every variant that such a device could run into $SPIRV, without a GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-out/gpu}
python=${PYTHON:-.venv/bin/python}
seconds=${SECONDS_TUNE:-300}
spirv=${SPIRV:-}
models=(runtime/demo/*.safetensors)
model=${models[0]}
export PYTHONPATH="$PWD:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH}"
kernelforge=("$python" -m kernelforge)
device=(${DEVICE:+--device "$DEVICE"})

say() { printf '\n== %s\n' "$*"; }

if [[ ${1:-} == compile ]]; then
  : "${spirv:?set SPIRV to the folder to write}"
  KERNELFORGE_SPIRV=$spirv "${kernelforge[@]}" build --all ${PROFILE:+--device-profile "$PROFILE"}
  say "compiled variants are in $spirv"
  exit 0
fi

mkdir -p "$out"
if [[ -n $spirv ]]; then export KERNELFORGE_SPIRV=$spirv; fi

say "devices"
"${kernelforge[@]}" devices | tee "$out/devices.txt"
"${kernelforge[@]}" doctor | tee "$out/doctor.txt" || true

say "conformance: every family and precision against its oracle on this device"
name=${DEVICE:-$("$python" -c 'import kernelforge_runtime as kf; print(kf.open_device().info.name)')}
KERNELFORGE_TEST_DEVICES=$name "$python" -m pytest tests/families/test_conformance.py tests/models -q \
  | tee "$out/conformance.txt"

for weights in bf16 f16; do
  say "tune: $weights"
  "${kernelforge[@]}" tune "${device[@]}" --shape v7-0.1b --weights "$weights" --profile full \
    --seconds "$seconds" --out "$out/tuned" --journal "$out/journal"
done
bundle=$(find "$out/tuned" -mindepth 1 -maxdepth 1 -type d | head -n 1)

say "bench"
"${kernelforge[@]}" bench --shape v7-0.1b "${device[@]}" --weights bf16,f16 --pp 32,256 --tg 64 --reps 5 \
  --bundle "$bundle" --compare-bundle generic --journal "$out/journal" | tee "$out/bench.md"
"${kernelforge[@]}" bench "$model" "${device[@]}" --weights f16 --pp 256 --tg 64 --reps 5 \
  --bundle "$bundle" --compare-bundle generic --journal "$out/journal" | tee -a "$out/bench.md"

say "report"
"${kernelforge[@]}" report "${device[@]}" --bundle "$bundle" --journal "$out/journal" --out "$out/report"
say "all artefacts are in $out"
