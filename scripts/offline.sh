#!/bin/bash
# Everything that a cluster without network needs, gathered on a machine with one (same CPU kind, same Python):
#   scripts/offline.sh gather FOLDER      wheels of requirements.lock and erw, the VAE and the DINOv2 teacher
#   scripts/offline.sh install FOLDER     there: an environment .venv out of them, no network touched
set -euo pipefail
if (( $# != 2 )) || [[ $1 != gather && $1 != install ]]; then
    sed -n '2,4p' "$0" >&2
    exit 2
fi
folder=$(mkdir -p "$2" && cd "$2" && pwd)
cd "$(dirname "$0")/.."
if [[ $1 == gather ]]; then
    # Source packages (deepspeed among them) are built into wheels here, where compilers and build tools can be had.
    DS_BUILD_OPS=0 python3 -m pip wheel --quiet --wheel-dir "$folder/wheels" -r requirements.lock
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" .
    # Weights into a hub cache of their own.
    HF_HOME=$folder/hub python3 - <<'PYTHON'
from huggingface_hub import snapshot_download

snapshot_download("stabilityai/sd-vae-ft-ema")
snapshot_download("timm/vit_base_patch14_dinov2.lvd142m")
PYTHON
    echo "carry $folder there, then: scripts/offline.sh install FOLDER"
else
    python3 -m venv .venv
    .venv/bin/pip install --quiet --no-index --find-links "$folder/wheels" -r requirements.lock
    .venv/bin/pip install --quiet --no-index --find-links "$folder/wheels" --no-deps erw
    echo "for every run: export HF_HOME=$folder/hub HF_HUB_OFFLINE=1"
fi
