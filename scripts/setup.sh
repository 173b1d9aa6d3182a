#!/usr/bin/env bash
# Makes this checkout ready to run: system packages, two software Vulkan devices, a .venv.
# A second run finds everything in place and changes nothing.
#
#   scripts/setup.sh              install what is missing (root, or sudo, for system packages)
#   scripts/setup.sh --check      only say what is missing; exit 1 if anything is
#   scripts/setup.sh --no-system  leave system packages alone
#
# PYTHON=python3.12 scripts/setup.sh   chooses the interpreter that .venv is made with
set -euo pipefail

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
cd "$root"
# shellcheck source=scripts/apt_sources.sh
. scripts/apt_sources.sh
# shellcheck source=scripts/fft.sh
. scripts/fft.sh

state=$root/.setup
swiftshader=$state/swiftshader
backports_file=/etc/apt/sources.list.d/kernelforge-backports.sources
mesa_wanted=25.0                 # 22.3 runs our kernels about eight times slower

say() { printf 'setup: %s\n' "$*"; }
warn() { printf 'setup: warning: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
any_file() { local f; for f in "$@"; do [[ -e $f ]] && return 0; done; return 1; }

# --- what is there ------------------------------------------------------------------------

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if have "$name" && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$name"
      return
    fi
  done
  return 1
}

has_part() {
  local python
  case $1 in
    python3) find_python >/dev/null ;;
    python3-venv) python=$(find_python) && "$python" -c 'import ensurepip, venv' 2>/dev/null ;;
    libvulkan1) [[ $({ ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null) == *libvulkan.so.1* ]] ;;
    vulkan-tools) have vulkaninfo ;;
    mesa-vulkan-drivers) any_file /{usr/share,usr/local/share,etc}/vulkan/icd.d/lvp_icd*.json ;;
    glslang-tools) have glslangValidator ;;
    spirv-tools) have spirv-val ;;
    vulkan-validationlayers)
      any_file /{usr/share,usr/local/share,etc}/vulkan/explicit_layer.d/VkLayer_khronos_validation.json ;;
  esac
}

# Debian's package names, which also name the thing on other systems.
packages=(python3 python3-venv libvulkan1 vulkan-tools mesa-vulkan-drivers glslang-tools
  spirv-tools vulkan-validationlayers)

missing_packages() {
  local package
  for package in "${packages[@]}"; do has_part "$package" || echo "$package"; done
}

# Names this checkout's own .venv: one that was moved or copied here has another path inside.
has_venv() {
  [[ -x .venv/bin/python && -f .venv/bin/kernelforge ]] &&
    [[ $(<.venv/bin/kernelforge) == *"$root/.venv/bin/python"* ]] &&
    .venv/bin/python -c '
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ["kernelforge", "numpy", "vulkan", "optuna", "pytest", "mypy"])))'
}

has_swiftshader() {
  [[ -s $swiftshader/libvk_swiftshader.so && -s $swiftshader/vk_swiftshader_icd.json &&
    -s $swiftshader/version ]]
}

has_postgres() { any_file /usr/lib/postgresql/*/bin/initdb; }
has_chromium() {
  have chromium-headless-shell || have chromium || have chromium-browser || have google-chrome
}

wanted_stamp() { cat pyproject.toml scripts/setup.sh scripts/apt_sources.sh scripts/fft.sh | sha256sum; }
is_current() { [[ -f $state/stamp && $(<"$state/stamp") == "$(wanted_stamp)" ]]; }

mesa_version() { dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || true; }
mesa_is_old() {
  local version
  version=$(mesa_version)
  [[ -n $version ]] && dpkg --compare-versions "$version" lt "$mesa_wanted"
}

check() {
  local package complete=0
  for package in $(missing_packages); do
    echo "missing: $package"
    complete=1
  done
  if ! has_venv; then
    echo "missing: .venv with kernelforge and its dependencies"
    complete=1
  elif ! is_current; then
    echo "out of date: .venv (pyproject.toml or the set-up script changed)"
    complete=1
  fi
  has_swiftshader || echo "optional, missing: SwiftShader (its tests are skipped)"
  has_postgres || echo "optional, missing: postgresql (the tests of a database shared by tuners are skipped)"
  has_chromium || echo "optional, missing: chromium-headless-shell (tests that look at a report's page are skipped)"
  { has_fft && has_opencl_device; } || echo "optional, missing: VkFFT (bench --peer vkfft is left out)"
  [[ $complete == 0 ]] && echo "everything is in place"
  return $complete
}

# --- system packages ----------------------------------------------------------------------

can_be_root() { [[ $EUID == 0 ]] || have sudo; }
as_root() {
  if [[ $EUID == 0 ]]; then "$@"; else sudo "$@"; fi
}

# apt_get LOG ARGUMENTS...: quiet, never asks, waits for another package manager to finish.
apt_get() {
  local log=$1 tries
  shift
  for tries in {1..100}; do
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C \
      apt-get -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 -o Acquire::http::Timeout=30 \
      -o Acquire::https::Timeout=30 "$@" >"$log" 2>&1 </dev/null && return 0
    # The lock on the package lists is not covered by apt's own time limit.
    grep -E 'Unable to lock directory|Could not get lock' "$log" >/dev/null || return 1
    [[ $tries == 1 ]] && say "waiting for another package manager to finish"
    sleep 3
  done
  return 1
}

problem_in() { grep -m 1 '^E:' "$1" || grep -m 1 '^W:' "$1" || tail -n 1 "$1"; }

# A foreign source that cannot be reached is no reason to stop: what we need may be there all the same.
refresh_lists() {
  [[ -n ${lists_are_fresh:-} ]] && return
  lists_are_fresh=yes
  say "refreshing the package lists"
  apt_get "$state/apt-update.log" update ||
    warn "apt-get update: $(problem_in "$state/apt-update.log"); going on with the lists at hand"
}

# newest_mesa: "VERSION SUITE" of the newest Mesa driver that apt knows.
newest_mesa() {
  local version line best='' suite=''
  while IFS='|' read -r _ version line; do
    version=${version// /}
    if [[ -z $best ]] || dpkg --compare-versions "$version" gt "$best"; then
      best=$version
      suite=$(awk '{ sub(/\/.*/, "", $2); print $2 }' <<<"$line")
    fi
  done < <(LC_ALL=C apt-cache madison mesa-vulkan-drivers 2>/dev/null | grep -F Packages)
  echo "$best $suite"
}

mesa_is_offered() {
  local version
  read -r version _ < <(newest_mesa)
  [[ -n $version ]] && dpkg --compare-versions "$version" ge "$mesa_wanted"
}

# Adds CODENAME-backports next to the machine's own sources, from the first archive that has it.
add_backports() {
  local codename=$1 stanzas n=0
  stanzas=$(backports_stanzas "$codename" /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list})
  while nth_stanza $((++n)) <<<"$stanzas" >"$state/backports.sources"; do
    as_root install -m 644 "$state/backports.sources" "$backports_file"
    apt_get "$state/apt-update.log" update -o Dir::Etc::sourcelist="$backports_file" \
      -o Dir::Etc::sourceparts=/dev/null -o APT::Get::List-Cleanup=0 || true
    if mesa_is_offered; then
      say "added the package source $codename-backports ($backports_file)"
      return 0
    fi
    as_root rm -f "$backports_file"
  done
  return 1
}

# Sets mesa_request to what to ask apt for, after making a new enough Mesa known where there is one.
choose_mesa() {
  local version suite candidate
  mesa_request="mesa-vulkan-drivers"
  if ! mesa_is_offered && [[ ${ID:-} == debian && -n ${VERSION_CODENAME:-} ]]; then
    add_backports "$VERSION_CODENAME" ||
      warn "none of this machine's package sources has $VERSION_CODENAME-backports"
  fi
  read -r version suite < <(newest_mesa)
  candidate=$(LC_ALL=C apt-cache policy mesa-vulkan-drivers | awk '$1 == "Candidate:" { print $2 }')
  if ! mesa_is_offered; then
    warn "Mesa $mesa_wanted or later is not offered here, only ${version:-none}:" \
      "the software device will be slow"
  elif [[ $candidate != "$version" ]]; then
    mesa_request+=/$suite                      # takes what it needs from that suite too
  fi
}

install_packages() {
  local missing=("$@") wanted=() package mesa_request
  if ! have apt-get; then
    die "this is not Debian or Ubuntu; missing: ${missing[*]} (their Debian names)." \
      "Install them with your package manager and run this again"
  fi
  if ! can_be_root; then
    die "missing: ${missing[*]}; no root and no sudo to install them." \
      "As root: apt-get install ${missing[*]}"
  fi
  refresh_lists
  for package in "${missing[@]}"; do
    if [[ $package == mesa-vulkan-drivers ]]; then
      choose_mesa
      package=$mesa_request
    fi
    wanted+=("$package")
  done
  say "installing system packages: ${wanted[*]}"
  apt_get "$state/apt-install.log" install --no-install-recommends "${wanted[@]}" ||
    die "apt-get install ${wanted[*]} failed: $(problem_in "$state/apt-install.log")." \
      "Check the network and the package sources, then run this again (log: .setup/apt-install.log)"
  sed -n 's/^Setting up \([^ ]*\) (\(.*\)) .*/setup:   \1 \2/p' "$state/apt-install.log"
}

setup_system() {
  local missing
  mapfile -t missing < <(missing_packages)
  # Asked for once per version of this script: where nothing newer is offered, asking again is waste.
  if ! is_current && mesa_is_old; then
    if can_be_root; then
      missing+=(mesa-vulkan-drivers)
    else
      warn "Mesa $(mesa_version) is slow and only root can install $mesa_wanted or later"
    fi
  fi
  if [[ ${#missing[@]} -gt 0 ]]; then
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} == 0 ]] || die "installed, yet still not found: ${missing[*]}"
  fi
}

# --- the checkout's own parts -------------------------------------------------------------

setup_venv() {
  local python
  has_venv && is_current && return
  python=$(find_python) || die "no Python 3.11 or later found. Install one, or name it: PYTHON=..."
  if ! { [[ -x .venv/bin/python ]] && .venv/bin/python -c '' 2>/dev/null &&
    grep -F "$root/.venv" .venv/bin/activate >/dev/null; }; then
    say "making .venv with $("$python" --version)"
    [[ ! -L .venv ]] || rm .venv  # another checkout's is not to be emptied
    "$python" -m venv --clear .venv >"$state/venv.log" 2>&1 ||
      die "python -m venv failed: $(tail -n 1 "$state/venv.log")." \
        "On Debian and Ubuntu: apt-get install python3-venv"
  fi
  say "installing Python packages into .venv: pip install -e '.[dev]'"
  .venv/bin/python -m pip install --disable-pip-version-check --no-input -e '.[dev]' \
    >"$state/pip.log" 2>&1 ||
    die "pip install failed: $(grep -m 1 '^ERROR' "$state/pip.log" || tail -n 1 "$state/pip.log")." \
      "Check the network and pip's index settings, then run this again (log: .setup/pip.log)"
  sed -n 's/^Successfully installed //p' "$state/pip.log" | tr ' ' '\n' |
    sed -E 's/^(.*)-([^-]*)$/setup:   \1 \2/'
}

# SwiftShader is Google's software device: the poorest one there is, so what runs on it is portable.
# Debian ships it inside chromium-common; two files of it are enough.
setup_swiftshader() {
  has_swiftshader && return
  # Refreshed once per version of this script: where it is not offered, asking again is waste.
  if [[ $1 == yes ]] && ! is_current && have apt-cache && ! apt-cache show chromium-common >/dev/null 2>&1; then
    refresh_lists
  fi
  if fetch_swiftshader 2>"$state/swiftshader.log"; then
    say "installed SwiftShader from chromium-common $(<"$swiftshader/version") into .setup/swiftshader"
  else
    warn "no SwiftShader ($(tail -n 1 "$state/swiftshader.log")): its tests will be skipped"
  fi
  rm -rf "$state/unpack"
}

fetch_swiftshader() {
  local unpack=$state/unpack
  have apt-get || { echo "it comes from a Debian package" >&2; return 1; }
  rm -rf "$unpack"
  mkdir -p "$unpack"
  # As root apt would drop to a user who may not write here.
  (cd "$unpack" && LC_ALL=C apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=2 \
    -o Acquire::http::Timeout=30 download chromium-common) >&2 || return 1
  dpkg-deb --fsys-tarfile "$unpack"/chromium-common_*.deb | tar -x -C "$unpack" --wildcards \
    --transform 's,.*/,,' '*/libvk_swiftshader.so' '*/vk_swiftshader_icd.json' || return 1
  sed -i -E 's,("library_path": *")[^"]*,\1./libvk_swiftshader.so,' "$unpack/vk_swiftshader_icd.json"
  VK_DRIVER_FILES=$unpack/vk_swiftshader_icd.json vulkaninfo --summary 2>&1 |
    grep -F SwiftShader >/dev/null || { echo "the Vulkan loader cannot use it" >&2; return 1; }
  dpkg-deb -f "$unpack"/chromium-common_*.deb Version >"$unpack/version" || return 1
  rm -rf "$swiftshader"
  mkdir "$swiftshader"
  mv "$unpack"/{libvk_swiftshader.so,vk_swiftshader_icd.json,version} "$swiftshader"
}

# Tests start a server of their own from it; the one that Debian would set up and start is not wanted.
setup_postgres() {
  local no_cluster=/etc/postgresql-common/createcluster.d/kernelforge.conf
  if has_postgres || is_current || ! have apt-get || ! can_be_root; then return; fi
  refresh_lists
  as_root mkdir -p "${no_cluster%/*}"
  echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
  if apt_get "$state/apt-postgres.log" install --no-install-recommends postgresql; then
    say "installed postgresql, for tests only: no server was set up"
  else
    warn "no PostgreSQL ($(problem_in "$state/apt-postgres.log")): its tests will be skipped"
  fi
  as_root rm -f "$no_cluster"
}

# Tests open a report's page in it. Ubuntu has it only as a snap, which is not installed.
setup_chromium() {
  if has_chromium || is_current || ! have apt-get || ! can_be_root; then return; fi
  refresh_lists
  if apt_get "$state/apt-chromium.log" install --no-install-recommends chromium-headless-shell; then
    say "installed chromium-headless-shell, for tests only"
  else
    warn "no Chromium ($(problem_in "$state/apt-chromium.log")): tests of a report's page will be skipped"
  fi
}

main() {
  local system=yes option
  for option in "$@"; do
    case $option in
      --check) check; return ;;
      --no-system) system=no ;;
      -h | --help) sed -n '2,/^set/{/^#/s/^# \?//p}' "${BASH_SOURCE[0]}"; return ;;
      *) echo "usage: scripts/setup.sh [--check | --no-system]" >&2; return 2 ;;
    esac
  done
  # shellcheck source=/dev/null
  [[ -r /etc/os-release ]] && . /etc/os-release
  mkdir -p "$state"
  exec 9>"$state/lock"
  if have flock; then flock 9; fi          # two makes at once: the second finds the work done

  if [[ $system == yes ]]; then
    setup_system
    setup_postgres
    setup_chromium
  else
    warn_of_missing
  fi
  setup_swiftshader "$system"
  setup_venv
  setup_fft "$system"
  wanted_stamp >"$state/stamp"
  local mesa
  mesa=$(mesa_version)
  say "ready: $(.venv/bin/python --version), Mesa ${mesa:-of unknown version}," \
    "SwiftShader $(cat "$swiftshader/version" 2>/dev/null || echo none)"
}

warn_of_missing() {
  local missing
  mapfile -t missing < <(missing_packages)
  [[ ${#missing[@]} == 0 ]] || warn "left alone, as asked; missing: ${missing[*]}"
}

main "$@"
