# Sourced by setup.sh: the extra `fft`, VkFFT through OpenCL with PoCL as a device.
# Optional: where it cannot be had, one line says so, and `bench --peer vkfft` and its test do without.
# shellcheck shell=bash disable=SC2154  # $state is setup.sh's, as are warn, say, apt_get ...

has_fft() {
  [[ -x .venv/bin/python ]] && .venv/bin/python -c '
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ["pyopencl", "pyvkfft"])))' 2>/dev/null
}

has_opencl_device() { any_file /etc/OpenCL/vendors/*.icd; }

# pyvkfft comes as source and is built against these.
fft_packages() {
  have g++ || echo g++
  any_file /usr/include/CL/cl.h /usr/local/include/CL/cl.h || echo opencl-headers
  any_file /usr/{lib,lib64,lib/*,local/lib}/libOpenCL.so || echo ocl-icd-opencl-dev
  has_opencl_device || echo pocl-opencl-icd
}

no_fft() { warn "no VkFFT ($*): bench --peer vkfft is left out, its test is skipped"; }

# setup_fft SYSTEM: once per version of the set-up, because asking again where it failed is waste.
setup_fft() {
  local system=$1 missing
  if [[ ${KERNELFORGE_FFT:-yes} == no ]] || is_current || { has_fft && has_opencl_device; }; then
    return
  fi
  mapfile -t missing < <(fft_packages)
  if [[ ${#missing[@]} -gt 0 ]]; then
    if [[ $system != yes ]] || ! have apt-get || ! can_be_root; then
      no_fft "missing: ${missing[*]}"
      return
    fi
    refresh_lists
    if ! apt_get "$state/apt-fft.log" install --no-install-recommends "${missing[@]}"; then
      no_fft "apt-get install ${missing[*]}: $(problem_in "$state/apt-fft.log")"
      return
    fi
  fi
  has_fft && return
  say "building pyvkfft, about a minute (KERNELFORGE_FFT=no leaves it out)"
  if VKFFT_BACKEND=opencl timeout 900 .venv/bin/python -m pip install --disable-pip-version-check \
    --no-input -e '.[fft]' >"$state/fft.log" 2>&1; then
    say "installed VkFFT through OpenCL"
  else
    no_fft "$(grep -m 1 '^ERROR' "$state/fft.log" || tail -n 1 "$state/fft.log")"
  fi
}
