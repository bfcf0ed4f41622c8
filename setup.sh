#!/usr/bin/env bash
# Sets up everything that demo and tests need: ComfyUI, a Python environment, the VAE files. Each step is repeatable and
# skips what is done. Who has ComfyUI and only wants the nodes needs none of this (see README.md).
set -euo pipefail

COMFYUI_REPOSITORY="https://github.com/comfyanonymous/ComfyUI"
COMFYUI_TAG="v0.33.0"
# Three versions that fit one another.
TORCH_PACKAGES="torch==2.14.1 torchvision==0.29.1 torchaudio==2.11.0"
VAE_NAME="qwen_image_vae.safetensors"
VAE_URL="https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae/$VAE_NAME"
VAE_BYTES=253806246
VAE_SHA256="a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f"

usage() {
    cat <<'TEXT'
usage: ./setup.sh [--no-models] [--tests] [--when-needed]

  --no-models     do not fetch qwen_image_vae.safetensors (254 MB); the demo VAE of this repository is used
  --tests         also see to what only the tests need: a Chromium
  --when-needed   do nothing where the same set-up has been through before

COMFYUI_PATH names the ComfyUI to use, PYTHON the interpreter to make .venv with (3.10 or newer). There is one .venv, with
the requirements of the ComfyUI that was named last: naming another one has its packages installed anew.
TEXT
}

models=yes
tests=no
when_needed=no
for argument in "$@"; do
    case "$argument" in
        --no-models) models=no ;;
        --tests) tests=yes ;;
        --when-needed) when_needed=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

cd "$(dirname "${BASH_SOURCE[0]}")"
venv_python=".venv/bin/python"
venv_stamp=".venv/latent-encoder-setup"
done_stamps=".cache/setup"
missing=""

say() { printf '%s\n' "$*"; }
lacks() { missing="$missing  - $1"$'\n'; say "   missing: $1"; }
have() { command -v "$1" >/dev/null 2>&1; }
is_python() { [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 10))' 2>/dev/null)" = True ]; }

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        is_python "$PYTHON" && printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3.12 python3.13 python3.11 python3 python3.10 python; do
        if have "$name" && is_python "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    return 1
}

# The sha256 of a file, or of standard input.
sha256() { if have sha256sum; then sha256sum "$@"; else shasum -a 256 "$@"; fi | cut -d ' ' -f 1; }

find_comfyui() {
    local status=0
    comfyui="$("$python" -m latent_encoder.service.engines.comfyui.checkout)" || status=$?
    if [ "$status" -gt 1 ]; then
        exit 1 # it has said why
    fi
}

clone_comfyui() {
    local target="$HOME/comfy/ComfyUI"
    say "   none found; cloning $COMFYUI_TAG into $target"
    if ! have git; then
        lacks "ComfyUI: git is not installed, so it cannot be cloned"
        return
    fi
    if [ -e "$target" ]; then
        lacks "ComfyUI: $target exists and holds no ComfyUI; move it away or set COMFYUI_PATH"
        return
    fi
    # Under another name first: a clone that breaks off must not look like a ComfyUI.
    rm -rf "$target.part"
    mkdir -p "$(dirname "$target")"
    if git clone --quiet --depth 1 --branch "$COMFYUI_TAG" "$COMFYUI_REPOSITORY" "$target.part"; then
        mv "$target.part" "$target"
        comfyui="$target"
    else
        rm -rf "$target.part"
        lacks "ComfyUI: $COMFYUI_REPOSITORY cannot be reached; set COMFYUI_PATH to one you have"
    fi
}

# The packages of the extras of pyproject.toml, one a line.
own_packages() {
    "$venv_python" - <<'PYTHON'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
own = f"{project['name']}["
print(*[line for lines in extras.values() for line in lines if not line.startswith(own)], sep="\n")
PYTHON
}

environment_key() {
    {
        "$venv_python" --version
        printf '%s\n' "$TORCH_PACKAGES"
        cat requirements.txt pyproject.toml
        if [ -n "$comfyui" ]; then cat "$comfyui/requirements.txt"; fi
    } | sha256
}

is_current() { [ "$(cat "$venv_stamp" 2>/dev/null)" = "$1" ]; }

has_modules() {
    "$venv_python" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' "$@"
}

set_up_environment() {
    if ! is_python "$venv_python"; then
        if [ -L .venv ] || { [ -e .venv ] && [ ! -f "$venv_stamp" ] && [ ! -f .venv/pyvenv.cfg ]; }; then
            lacks "a virtual environment: .venv is there, holds no Python that runs, and is not ours to delete; move it away"
            return
        fi
        if [ -e .venv ] && [ ! -O .venv ]; then
            lacks "a virtual environment: .venv belongs to another user; move it away"
            return
        fi
        say "   making .venv with $("$python" --version)"
        rm -rf .venv
        if ! "$python" -m venv .venv; then
            lacks "a virtual environment: '$python -m venv' failed (on Debian and Ubuntu: apt-get install python3-venv)"
            return
        fi
    fi
    local key
    key="$(environment_key)"
    if is_current "$key"; then
        say "   up to date"
        return
    fi
    local requirements="$done_stamps/requirements.txt"
    {
        printf '%s\n' "$TORCH_PACKAGES" | tr ' ' '\n'
        own_packages
        if [ -n "$comfyui" ]; then cat "$comfyui/requirements.txt"; fi
    } >"$requirements"
    say "   installing torch, ComfyUI's requirements and ours; the first time takes minutes"
    if "$venv_python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -r "$requirements"; then
        printf '%s\n' "$key" >"$venv_stamp"
    elif has_modules torch safetensors httpx PIL aiohttp; then
        lacks "some Python packages: pip could not install them all (no network?); going on with what is there"
    else
        lacks "Python packages: pip could not install them (no network?)"
    fi
}

# Whether this ComfyUI reads a Wan/Qwen VAE's width from the file; an older one knows only 96.
reads_vae_width() { grep -q 'dim = sd\["decoder.head.0.gamma"\].shape\[0\]' "$comfyui/comfy/sd.py"; }

lay_demo_vae() {
    local folder="$comfyui/models/vae" padded="$comfyui/models/vae/demo_vae_96.safetensors" stamp
    if ! mkdir -p "$folder" 2>/dev/null || [ ! -w "$folder" ]; then
        lacks "the demo VAE in ComfyUI: $folder cannot be written"
        return
    fi
    if ! cmp -s assets/demo_vae.safetensors "$folder/demo_vae.safetensors"; then
        cp assets/demo_vae.safetensors "$folder/.demo_vae.part"
        mv "$folder/.demo_vae.part" "$folder/demo_vae.safetensors"
    fi
    say "   demo_vae.safetensors"
    if reads_vae_width; then
        return
    fi
    stamp="$done_stamps/demo_vae_96-$(cat assets/demo_vae.safetensors tools/pad_demo_vae.py | sha256)"
    if [ ! -f "$padded" ] || [ ! -f "$stamp" ]; then
        if ! "$venv_python" tools/pad_demo_vae.py assets/demo_vae.safetensors "$padded"; then
            lacks "demo_vae_96.safetensors, which this older ComfyUI needs: it could not be made"
            return
        fi
        touch "$stamp"
    fi
    say "   demo_vae_96.safetensors, for this older ComfyUI"
}

fetch_vae() {
    local file="$comfyui/models/vae/$VAE_NAME"
    if [ -f "$file" ]; then
        say "   $VAE_NAME"
        return
    fi
    if [ "$models" = no ]; then
        say "   $VAE_NAME: not fetched (--no-models)"
        return
    fi
    # What is already whole is only checked: a server has nothing to send after its end.
    if [ ! -f "$file.part" ] || [ "$(wc -c <"$file.part")" -lt "$VAE_BYTES" ]; then
        if ! have curl; then
            lacks "$VAE_NAME: curl is not installed"
            return
        fi
        say "   fetching $VAE_NAME (254 MB; goes on where it stopped)"
        if ! curl --fail --location --continue-at - --connect-timeout 10 --progress-bar \
            --output "$file.part" "$VAE_URL"; then
            lacks "$VAE_NAME: it could not be fetched (no network?); until then the demo VAE is used"
            say "   by hand: download $VAE_URL into $comfyui/models/vae"
            return
        fi
    fi
    if [ "$(sha256 "$file.part")" != "$VAE_SHA256" ]; then
        rm -f "$file.part"
        lacks "$VAE_NAME: what was fetched has the wrong checksum and was deleted; run this again"
        return
    fi
    mv "$file.part" "$file"
}

see_to_browser() {
    if have chromium || have chromium-browser || have google-chrome || have google-chrome-stable; then
        say "   found"
        return
    fi
    local patience="DPkg::Lock::Timeout=120" # another installation may be under way
    if [ "$(id -u)" = 0 ] && have apt-get && apt-get update --quiet &&
        apt-get --option "$patience" install --yes --quiet chromium; then
        return
    fi
    lacks "Chromium, for the browser tests: install the package 'chromium'; without it they are skipped"
}

if ! python="$(find_python)"; then
    say "Python 3.10 or newer is needed; set PYTHON to one." >&2
    exit 1
fi
mkdir -p "$done_stamps"
if have flock; then # two set-ups at once would break each other's .venv; Linux has this command, macOS does not
    exec 9>"$done_stamps/lock"
    if ! flock --nonblock 9; then
        say "Waiting for another set-up of this folder to end ..."
        flock 9
    fi
fi
comfyui=""
find_comfyui

# Stands for all that decides what there is to do. The Python environment's own key, $1, has its stamp beside it.
done_stamp() {
    local key
    key="$({ printf '%s\n' "$1" "$comfyui" "$models" "$tests"; cat setup.sh assets/demo_vae.safetensors; } | sha256)"
    printf '%s\n' "$done_stamps/done-$key"
}
if [ "$when_needed" = yes ] && [ -n "$comfyui" ] && [ -x "$venv_python" ]; then
    key="$(environment_key)"
    if is_current "$key" && [ -f "$(done_stamp "$key")" ]; then
        exit 0
    fi
fi

say "1. ComfyUI"
if [ -z "$comfyui" ]; then clone_comfyui; fi
if [ -n "$comfyui" ]; then say "   $comfyui"; else say "   none: the embedded engine (diffusers) encodes"; fi

say "2. Python environment (.venv)"
set_up_environment

say "3. VAE files"
if [ -n "$comfyui" ]; then
    lay_demo_vae
    fetch_vae
else
    say "   skipped: no ComfyUI"
fi

if [ "$tests" = yes ]; then
    say "4. Chromium"
    see_to_browser
fi

if [ -n "$missing" ]; then
    printf '\nSet-up went on with what there is. Missing:\n%s' "$missing"
else
    printf '\nSet-up is complete.\n'
fi
# Without these neither demo nor tests can run; everything else, ComfyUI too, has a substitute or skips its tests.
if ! has_modules torch safetensors httpx; then
    exit 1
fi
key="$(environment_key)"
if is_current "$key"; then touch "$(done_stamp "$key")"; fi
