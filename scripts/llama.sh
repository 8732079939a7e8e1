# Sourced by scripts/setup and scripts/llama-build, after scripts/steps.sh: builds of llama.cpp in .builds, and what they
# need for GPUs. look_for_* change nothing: they end the script with a reason, or add to the missing system packages.
# Callers set `root`, `cores` and `options`: CMake's, the user's among them, which win.
# shellcheck shell=bash disable=SC2154

backend_args=()

pinned() { sed -n "s/^ *\($1==[^ ]*\)$/\1/p" setup.cfg; }

cmake_args() {  # OPTION... as one CMAKE_ARGS, whatever the paths in it look like
    [ $# = 0 ] || printf "'%s' " "$@"
}

# ---- NVIDIA. A toolkit that is installed is used. Otherwise its compiler and libraries come from the package index.
cuda_wheels=
cuda_arch=
cuda_minutes=0

cuda_architectures() {  # the CMake option for compute capabilities, which may be written as 8.6 or 86
    local list= capability
    for capability in ${*//[;,]/ }; do
        capability=${capability//./}
        [[ $capability =~ ^[1-9][0-9][0-9]?[af]?$ ]] ||
            give_up "CUDA_ARCHS lists compute capabilities such as \"86 89\", and '$capability' is none"
        list+=${list:+;}$capability-real
    done
    printf -- '-DCMAKE_CUDA_ARCHITECTURES=%s' "$list"
}

nvidia_smi() { nvidia-smi "--query-gpu=$1" --format=csv,noheader 2>/dev/null | grep -E '^[0-9.]+$' | sort -u; }

look_for_cuda() {
    PATH=$PATH:/usr/local/cuda/bin
    case $options in *CUDAToolkit_ROOT* | *CMAKE_CUDA_COMPILER*) return ;; esac
    # (packages of the compiler alone lack cuBLAS)
    if command -v nvcc >/dev/null && echo '#include <cublas_v2.h>' | nvcc -x cu -E - >/dev/null 2>&1; then
        say "  llama.cpp is built with the CUDA toolkit of $(command -v nvcc)"
        return
    fi
    local cards driver capability
    case $(uname -sm) in
        "Linux x86_64" | "Linux aarch64") ;;
        *) give_up "CUDA=1 needs the CUDA toolkit with nvcc and cuBLAS: for $(uname -sm) the package index has none" ;;
    esac
    driver=$(nvidia_smi driver_version | head -n 1) || true
    if [ -n "$driver" ] && [ "${driver%%.*}" -lt 580 ]; then
        give_up "NVIDIA's driver $driver is too old for CUDA 13: install 580 or newer, or a CUDA 12 toolkit, or take Vulkan: make node VULKAN=1"
    fi
    case $options in
        *CMAKE_CUDA_ARCHITECTURES=*) cards=$(sed 's/.*CMAKE_CUDA_ARCHITECTURES=\([^ ]*\).*/\1/; s/[^0-9;]//g; s/;/ /g' <<<"$options") ;;
        *)
            cards=$(nvidia_smi compute_cap) || true
            [ -n "$cards" ] || give_up "CUDA=1 sees no NVIDIA GPU ('nvidia-smi' lists none): install NVIDIA's driver, or name the compute capabilities to build for: CUDA=1 CUDA_ARCHS=\"86 89\""
            cuda_arch=$(cuda_architectures $cards)
            ;;
    esac
    for capability in $cards; do
        if [ "${capability//./}" -lt 75 ]; then
            give_up "CUDA 13 knows no GPU of compute capability $capability, 7.5 is the least: take Vulkan: make node VULKAN=1, or install a CUDA 12 toolkit"
        fi
    done
    cuda_wheels=1
    cuda_minutes=$((47 * $(wc -w <<<"$cards")))
}

prepare_cuda() {
    [ -n "$cuda_wheels" ] || return 0
    local packages=$root/.builds/cuda-toolkit library
    local toolkit=$packages/nvidia/cu13
    [ -d "$packages" ] || step "CUDA's compiler and libraries (620 MB to download)" install_cuda "$packages"
    # The packages lack the names under which linkers look for libraries.
    for library in cudart cublas cublasLt; do ln -sf "lib$library.so.13" "$toolkit/lib/lib$library.so"; done
    # Without NO_VMM the library would need libcuda.so.1, which only a driver brings, also to be linked.
    backend_args+=(-DGGML_CUDA_NO_VMM=on -DGGML_CUDA_NCCL=off "-DCUDAToolkit_ROOT=$toolkit"
        "-DCMAKE_CUDA_COMPILER=$toolkit/bin/nvcc" "-DMYCELIA_CUDA_LIBRARIES=$toolkit/lib" ${cuda_arch:+"$cuda_arch"})
    say "  CUDA is compiled for $(printf '%s' "$options $cuda_arch" | sed 's/.*ARCHITECTURES=\([^ ]*\).*/\1/; s/-real//g; s/;/, /g'): about $((cuda_minutes / cores + 1)) min on $cores cores"
}

install_cuda() {  # FOLDER
    rm -rf "$1.new"
    .venv/bin/python -m pip install --no-warn-conflicts --target "$1.new" "$(pinned 'cuda-toolkit\[[a-z,]*\]')"
    mv "$1.new" "$1"
}

# ---- Vulkan: GPUs of AMD, Intel and others
vulkan_sdk=(${VULKAN_SDK:+"-I$VULKAN_SDK/include" "-L$VULKAN_SDK/lib"})

look_for_vulkan() {
    command -v glslc "${VULKAN_SDK:-/none}/bin/glslc" >/dev/null || lacks "glslc, a compiler of shaders" glslc glslc
    if ! printf '#include <vulkan/vulkan_core.h>\nint main(void) { return 0; }\n' |
        compiles c "${CC:-cc}" ${vulkan_sdk[@]+"${vulkan_sdk[@]}"} -lvulkan; then
        lacks "Vulkan's loader and headers" libvulkan-dev "vulkan-loader-devel vulkan-headers"
    fi
    if ! printf '#include <spirv/unified1/spirv.hpp>\nint main() {}\n' |
        compiles c++ "${CXX:-c++}" ${vulkan_sdk[@]+"${vulkan_sdk[@]}"}; then
        lacks "SPIR-V's headers" spirv-headers spirv-headers-devel
    fi
}

prepare_vulkan() {
    local headers=$root/.builds/vulkan-headers
    case $options in *Vulkan_INCLUDE_DIR*) return ;; esac
    printf '#include <vulkan/vulkan_core.h>\n#ifdef VK_EXT_layer_settings\nint main(void) { return 0; }\n#endif\n' |
        compiles c "${CC:-cc}" ${vulkan_sdk[@]+"${vulkan_sdk[@]}"} && return
    # Only the headers are too old, as in Debian 12, so those of Debian 13 are used beside the system's.
    [ -d "$headers" ] || step "newer headers of Vulkan" unpack_debian trixie "$headers" download libvulkan-dev
    backend_args+=("-DVulkan_INCLUDE_DIR=$headers/usr/include")
}

name_missing_driver() {  # a line when no driver of Vulkan is installed
    local file
    for file in {/usr/share,/usr/local/share,/etc,"${XDG_DATA_HOME:-$HOME/.local/share}"}/vulkan/icd.d/*.json; do
        if [ -e "$file" ]; then return; fi
    done
    [ -n "${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-}" ] ||
        say "  No driver of Vulkan is installed, so models run on the processor: install mesa-vulkan-drivers for AMD and Intel, or NVIDIA's driver"
}

# ---- Packages of another Debian release, unpacked beside the system. Needs no root and installs nothing.
debian_mirror() {  # the one that apt uses
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 -E '/debian/?$'
}

unpack_debian() {  # SUITE FOLDER COMMAND PACKAGE: the package of that release; without what it depends on when COMMAND
    # is `download`, with all of that which the system lacks when it is `install`
    local suite=$1 folder=$2 command=$3 package=$4 apt=$2.apt mirror archive
    mirror=$(debian_mirror) || { echo "$package of Debian $suite is fetched on Debian only: install a newer one by hand"; return 1; }
    rm -rf "$folder.new" "$apt"
    mkdir -p "$folder.new" "$apt/lists/partial" "$apt/cache/archives/partial"
    for suite in ${suite%-backports} $suite; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
    done | sort -u >"$apt/sources.list"
    local get=(apt-get -q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::Cache=$apt/cache"
        -o "Dir::State::Lists=$apt/lists" -o APT::Sandbox::User= -o Debug::NoLocking=true)
    "${get[@]}" update
    if [ "$command" = install ]; then get+=(-y --no-install-recommends --download-only -t "$suite"); fi
    (cd "$apt/cache/archives" && "${get[@]}" "$command" "$package")
    for archive in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$folder.new"; done
    rm -rf "$apt" "$folder"
    mv "$folder.new" "$folder"
}

# ---- Builds in .builds/NAME: a wheel there, and its libraries in lib. The build folder stays, so that what was compiled
# before a stop is not compiled again.
look_for_backends() {  # those that `options` ask for
    case $options in *GGML_CUDA=on*) look_for_cuda ;; esac
    case $options in *GGML_VULKAN=on*) look_for_vulkan ;; esac
}

lock_builds() {  # one build at a time; the lock is on a file that exists anyway
    mkdir -p "$root/.builds"
    exec 8<scripts/llama.sh
    if command -v flock >/dev/null && ! flock --nonblock 8; then
        say "Waiting for another build in this folder to end ..."
        flock 8
    fi
}

build_llama() {  # NAME, which says what is built; sets `wheel`
    local home=$root/.builds/$1 llama wanted source
    llama=$(pinned llama-cpp-python)
    source=$root/.builds/${llama/==/-}
    wanted="$llama in $root: $options $cuda_arch"
    mkdir -p "$home"
    if [ "$(cat "$home/built" 2>/dev/null)" != "$wanted" ]; then
        rm -f "$home/built"
        case $options in *GGML_CUDA=on*) prepare_cuda ;; esac
        case $options in *GGML_VULKAN=on*) prepare_vulkan ;; esac
        [ -d "$source" ] || step "llama.cpp's sources (77 MB to download)" unpack_source "$llama" "$source"
        step "llama.cpp ($1)" compile_llama "$home" "$source"
        printf '%s' "$wanted" >"$home/built"
        case $options in *GGML_VULKAN=on*) name_missing_driver ;; esac
    fi
    wheel=$(echo "$home"/wheel/*.whl)
}

unpack_source() {  # VERSION FOLDER
    rm -rf "$2.new" && mkdir "$2.new"
    .venv/bin/python -m pip download --no-deps --no-binary llama-cpp-python --dest "$2.new" "$1"
    tar -xzf "$2.new"/*.tar.gz -C "$2.new" --strip-components=1
    rm "$2.new"/*.tar.gz
    mv "$2.new" "$2"
}

compile_llama() {  # FOLDER SOURCE
    # The build also copies libraries into the sources, from where another kind of build would take them along.
    rm -rf "$2/llama_cpp/lib" "$1/wheel"
    # With INSTALL_BINDIR, plug-ins land where the bindings look; with INSTALL_LIBDIR there is one copy of the rest.
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_INSTALL_BINDIR=llama_cpp/lib -DCMAKE_INSTALL_LIBDIR=llama_cpp/lib $(
        cmake_args "-DCMAKE_PROJECT_llama_cpp_INCLUDE=$root/scripts/llama.cmake" ${backend_args[@]+"${backend_args[@]}"}) $options" \
        CMAKE_BUILD_PARALLEL_LEVEL=$cores .venv/bin/python -m pip wheel --verbose --no-deps --no-cache-dir \
        --config-settings "build-dir=$1/build" --wheel-dir "$1/wheel" "$2"
    rm -rf "$2/llama_cpp/lib"
    .venv/bin/python scripts/slim_wheel.py "$1"/wheel/*.whl "$1/lib"
}
