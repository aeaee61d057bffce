# shellcheck shell=bash
# Sourced by quickstart and check, which run in the repository root: installs what the build needs
# where that is possible, says what is missing elsewhere, and configures and builds.

# The folder of --prebuilt, relative to where the script was called.
prebuilt_folder() { cd "$called_from" && realpath -e "${1:?"--prebuilt needs a folder"}"; }

# A compiler's view, so that headers outside /usr/include count too.
has_header() {
  command -v g++ >/dev/null &&
    printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | g++ -x c++ -E - >/dev/null 2>&1
}

missing_packages() {
  local tool
  for tool in cmake g++ make; do command -v "$tool" >/dev/null || echo "$tool"; done
  has_header fmt/core.h || echo libfmt-dev
  has_header CLI/CLI.hpp || echo libcli11-dev
  has_header doctest/doctest.h || echo doctest-dev
  has_header nlohmann/json.hpp || echo nlohmann-json3-dev
  has_header xxhash.h || echo libxxhash-dev
}

can_install() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq </dev/null && apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

# The same folders that CMakeLists.txt looks into.
has_cuda_headers() {
  local root folder
  for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
    [[ -n $root ]] || continue
    for folder in "$root/include" "$root/targets/x86_64-linux/include"; do
      [[ -e $folder/nvrtc.h && -e $folder/cuda.h ]] && return
    done
  done
  has_header nvrtc.h
}

# Where src/compile/nvrtc.cpp looks, too. The build needs only its header, but nothing compiles a
# kernel without the library.
has_nvrtc() {
  [[ -n ${GIRIH_NVRTC:-} ]] && return
  /sbin/ldconfig -p 2>/dev/null | grep -q 'libnvrtc\.so' && return
  local root folder python='lib/python3*/*-packages/nvidia/*/lib'
  for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
    [[ -n $root ]] || continue
    for folder in "$root/lib64" "$root/lib"; do
      compgen -G "$folder/libnvrtc.so*" >/dev/null && return
    done
  done
  compgen -G "/usr/lib/python3/dist-packages/nvidia/*/lib/libnvrtc.so*" >/dev/null && return
  for root in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "${HOME:-}/.local" /usr/local /opt/venv \
    /opt/*/venv /opt/*/.venv; do
    [[ -n $root ]] || continue
    compgen -G "$root/$python/libnvrtc.so*" >/dev/null && return
    compgen -G "$root/lib/libnvrtc.so*" >/dev/null && return
  done
  return 1
}

set_up() {
  local packages
  packages=$(missing_packages | tr '\n' ' ')
  if [[ -n $packages ]]; then
    if ! can_install; then
      echo "Missing: $packages(names of Debian and Ubuntu packages)." >&2
      echo "Run as root to have them installed: apt-get install $packages" >&2
      exit 1
    fi
    echo "Installing $packages"
    # shellcheck disable=SC2086  # a list of words
    install_packages $packages
  fi
  if ! has_cuda_headers; then
    echo "Missing: nvrtc.h and cuda.h, which come with NVIDIA's CUDA toolkit; Debian's main archive" >&2
    echo "does not have them. Install CUDA 13.0's NVRTC and headers from" >&2
    echo "https://developer.nvidia.com/cuda-downloads, or set CUDA_HOME to where they are." >&2
    exit 1
  fi
  if ! has_nvrtc; then
    echo "Missing: libnvrtc, CUDA's run-time compiler (12.1 or later; 13.0 is what is tested)." >&2
    echo "Install cuda-nvrtc-13-0 from NVIDIA's Debian repository, or 'pip install" >&2
    echo "nvidia-cuda-nvrtc', or set GIRIH_NVRTC to the library or its folder." >&2
    exit 1
  fi
}

# build PRESET [TARGET...]
build() {
  local preset=$1 target
  shift
  cmake --preset "$preset" --log-level=WARNING
  local arguments=(--build --preset "$preset" -j "$(nproc)")
  for target in "$@"; do arguments+=(--target "$target"); done
  cmake "${arguments[@]}"
}
