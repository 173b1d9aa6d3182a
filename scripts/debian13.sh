#!/usr/bin/env bash
# A small Debian 13 beside this machine's own system, for what only its packages have: a Mesa whose
# software device knows cooperative matrices, and a GLSL compiler and validation layer that do too.
# Unpacked into .setup/debian13, so the machine stays as it is and no root is needed.
#
#   scripts/debian13.sh             make it where it is missing
#   scripts/debian13.sh COMMAND...  make it where it is missing and run a command in it, in this folder
#   scripts/debian13.sh --check     only say whether it is there; exit 1 if not
#
# Exit status 77: it cannot be made here; the reason is the last line. /tmp is the machine's own.
set -euo pipefail

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
cd "$root"
# shellcheck source=scripts/apt_sources.sh
. scripts/apt_sources.sh

state=$root/.setup
system=$state/debian13
fresh=$state/debian13.new                 # becomes the system once complete
log=$state/debian13.log
mesa_wanted=26.1
cannot=77

# What depends on each other is added by apt; the scripts that would set them up are not run.
packages=(base-files bash coreutils dash findutils grep libc-bin mawk sed python3 libvulkan1 vulkan-tools
  mesa-vulkan-drivers/trixie-backports glslang-tools spirv-tools vulkan-validationlayers)
# What the conformance suite imports; tuning and reports are tested on the machine itself.
modules=(numpy safetensors vulkan pyrwkv-tokenizer rich jinja2 pytest pytest-xdist hypothesis)

say() { printf 'debian13: %s\n' "$*"; }
die() { printf 'debian13: error: %s\n' "$*" >&2; exit 1; }
skip() { printf 'debian13: skipped: %s\n' "$*" >&2; exit "$cannot"; }
have() { command -v "$1" >/dev/null 2>&1; }

# A mount namespace takes every mount with it when its last process ends, however it ends.
in_namespace() {
  local options=(--mount --propagation private)
  [[ $EUID == 0 ]] || options+=(--map-root-user)
  unshare "${options[@]}" "$@"
}

# Of all that decides what is in it; a moved checkout needs its own path inside.
wanted_stamp() {
  { echo "$root" "$mesa_wanted" "${packages[@]}" "${modules[@]}"
    declare -f find_archive unpack_packages install_modules; } | sha256sum
}
is_complete() { [[ -f $system/stamp && $(<"$system/stamp") == "$(wanted_stamp)" ]]; }

# --- making it ----------------------------------------------------------------------------

# apt_13 COMMAND...: apt on this system's own lists, as if nothing were installed.
apt_13() {
  local apt=$fresh/var/lib/kernelforge-apt command=$1
  shift
  LC_ALL=C "$command" -y -o Dir::Etc::sourcelist="$apt/archive.sources" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
    -o Dir::Cache::archives="$apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Languages=none \
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 \
    -o APT::Update::Error-Mode=any "$@" >>"$log" 2>&1 </dev/null
}

problem() { grep '^E:' "$log" | tail -n 1 || tail -n 1 "$log"; }

# The machine's own archive has trixie too, wherever it is; third parties that do not are passed over.
find_archive() {
  local apt=$fresh/var/lib/kernelforge-apt stanzas n=0 ID='' VERSION_CODENAME=''
  # shellcheck source=/dev/null
  [[ -r /etc/os-release ]] && . /etc/os-release
  [[ $ID == debian && -n $VERSION_CODENAME ]] || skip "this is ${ID:-no} Linux whose archive is not Debian's"
  mkdir -p "$apt"/{lists,archives}/partial
  : >"$apt/status"
  stanzas=$(backports_stanzas "$VERSION_CODENAME" /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list} |
    sed -E 's/^Suites: .*/Suites: trixie trixie-backports/')
  while nth_stanza $((++n)) <<<"$stanzas" >"$apt/archive.sources"; do
    apt_13 apt-get update && return
  done
  skip "no package source of this machine offers Debian 13 ($(problem))"
}

unpack_packages() {
  local apt=$fresh/var/lib/kernelforge-apt version
  apt_13 apt-get --no-install-recommends --download-only install "${packages[@]}" ||
    skip "its packages cannot be fetched ($(problem))"
  version=$(dpkg-deb -f "$apt"/archives/mesa-vulkan-drivers_*.deb Version)
  dpkg --compare-versions "$version" ge "$mesa_wanted" || skip "its Mesa is only $version, not $mesa_wanted"
  # First, because it makes /bin, /lib and the like the links that the others unpack through.
  dpkg-deb -x "$apt"/archives/base-files_*.deb "$fresh"
  find "$apt/archives" -name '*.deb' ! -name 'base-files_*' -print0 |
    xargs -0 -P "$(nproc)" -I{} dpkg-deb -x {} "$fresh" >>"$log" 2>&1 || die "unpacking failed; see $log"
  rm -r "$apt"
  # What their scripts would have made.
  ln -sf mawk "$fresh/usr/bin/awk"
  echo 'root:x:0:0:root:/root:/bin/bash' >"$fresh/etc/passwd"
  echo 'root:x:0:' >"$fresh/etc/group"
  echo "$version" >"$fresh/mesa-version"
}

# This machine's pip fetches for the other Python: it knows how to reach its index, the other does not.
install_modules() {
  local python version platforms=() minor
  python=$root/.venv/bin/python
  [[ -x $python ]] || die "no .venv; run scripts/setup.sh first"
  version=$(find "$fresh/usr/bin" -name 'python3.*' -printf '%f\n' | sort | head -n 1)
  for minor in {41..17}; do platforms+=(--platform "manylinux_2_${minor}_$(uname -m)"); done
  platforms+=(--platform "manylinux2014_$(uname -m)")
  # The versions that the machine's own tests run with, so that a difference is Mesa's or the compiler's.
  "$python" -m pip freeze 2>>"$log" | grep -E '^[^ @]+==' >"$fresh/constraints.txt" || true
  "$python" -m pip install --disable-pip-version-check --no-input --no-compile --only-binary=:all: \
    --implementation cp --python-version "${version#python}" "${platforms[@]}" \
    --constraint "$fresh/constraints.txt" --target "$fresh/usr/local/lib/$version/dist-packages" \
    "${modules[@]}" >>"$log" 2>&1 || skip "its Python modules cannot be fetched ($(grep '^ERROR' "$log" | tail -n 1))"
  printf '%s\n' "$root" "$root/runtime" >"$fresh/usr/local/lib/$version/dist-packages/checkout.pth"
}

make_system() {
  local tool
  for tool in apt-get dpkg-deb unshare chroot xargs; do have "$tool" || skip "no $tool"; done
  in_namespace true 2>/dev/null || skip "mount namespaces are not allowed"
  say "making .setup/debian13 (about a minute)"
  rm -rf "$fresh"
  mkdir -p "$fresh"
  : >"$log"
  trap 'rm -rf "$fresh"' EXIT
  find_archive
  say "unpacking its packages"
  unpack_packages
  say "installing Python modules: ${modules[*]}"
  install_modules
  system=$fresh run_inside sh -c 'ldconfig && glslangValidator --version && python3 -c "import numpy, vulkan, xdist, kernelforge"' \
    >>"$log" 2>&1 || die "it does not work: $(tail -n 1 "$log")"
  wanted_stamp >"$fresh/stamp"
  rm -rf "$system"
  mv "$fresh" "$system"
  trap - EXIT
  say "ready: Mesa $(<"$system/mesa-version") in .setup/debian13"
}

# --- using it -----------------------------------------------------------------------------

# run_inside COMMAND...: in the system, this folder and ../shared at their own paths.
run_inside() {
  system=$system root=$root in_namespace bash -euc '
    mount --rbind /dev "$system/dev"
    mount --rbind /proc "$system/proc"
    mount --bind /tmp "$system/tmp"
    mkdir -p "$system$root"
    mount --bind "$root" "$system$root"
    if [[ -d $root/../shared ]]; then
      shared=$(cd "$root/../shared" && pwd)
      mkdir -p "$system$shared"
      mount --bind "$shared" "$system$shared"
    fi
    unset VK_ADD_DRIVER_FILES VIRTUAL_ENV PYTHONPATH PYTHONHOME LD_LIBRARY_PATH LD_PRELOAD TMPDIR
    unset KERNELFORGE_DEVICE KERNELFORGE_GLSLANG XDG_CACHE_HOME XDG_DATA_HOME
    export VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json
    # What tools remember stays with the system, not in a checkout that another Python uses.
    export PYTHONPYCACHEPREFIX=/var/cache/python HYPOTHESIS_STORAGE_DIRECTORY=/var/cache/hypothesis
    export PYTEST_ADDOPTS="-o cache_dir=/var/cache/pytest" KERNELFORGE_TEST_DEVICES=llvmpipe
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8
    exec chroot "$system" /bin/sh -c "cd \"\$1\" && shift && exec \"\$@\"" sh "$root" "$@"
  ' bash "$@"
}

main() {
  case ${1:-} in
    --check)
      is_complete || { echo "missing: .setup/debian13 (its tests are skipped)"; return 1; }
      echo "in place: Mesa $(<"$system/mesa-version")"
      return ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \?//p}' "${BASH_SOURCE[0]}"; return ;;
    -*) echo "usage: scripts/debian13.sh [--check | COMMAND...]" >&2; return 2 ;;
  esac
  mkdir -p "$state"
  exec 9>"$state/debian13.lock"
  if have flock; then flock 9; fi
  is_complete || make_system >&2
  exec 9>&-                                # commands inside may run side by side
  [[ $# == 0 ]] || run_inside "$@"
}

main "$@"
