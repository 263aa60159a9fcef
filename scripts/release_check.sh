#!/bin/bash
# Builds the sdist and the wheel into dist/, and uses each as a stranger does: `make release-check`.
#
# Both are installed into fresh environments (several GB each, one after the other) and used from another folder: the
# core alone, where the six lines of the README run and nothing of BasicSR is there, then `[basicsr]`, with `pcl-loss
# doctor` and a training of two iterations. With PYTHON=python3.12 that Python, not 3.13, which has no BasicSR; with
# TAG=vX.Y.Z the tag, the version and the changelog must agree.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'echo "release-check FAILED at line $LINENO: $BASH_COMMAND" >&2' ERR
MAX_WHEEL=1048576 # bytes
# What BasicSR's build imports, since it runs without isolation: an isolated one would download PyTorch a second time.
BUILD="torch torchvision numpy cython wheel setuptools>=77"

fresh_environment() { # an empty folder to work in, and a virtual environment on PATH
  rm -rf "$scratch"/* && mkdir "$scratch/work" && cd "$scratch/work"
  "$python" -m venv "$scratch/venv"
  PATH=$scratch/venv/bin:$PATH
  hash -r
}

train_two_iterations() {
  python -c '
from pathlib import Path
from skimage import data, io
Path("hr").mkdir()
io.imsave("hr/coffee.png", data.coffee()[:288, :288])'
  pcl-loss prepare --hr hr --out pairs --scale 4 --jobs 1
  pcl-loss options --to options
  folders=()
  for phase in train val; do
    folders+=("datasets:$phase:dataroot_gt=pairs/X4/HR" "datasets:$phase:dataroot_lq=pairs/X4/LR")
    folders+=("datasets:$phase:filename_tmpl='{}'")
  done
  pcl-loss train -opt options/train/train_EDSR-S_x4_PCL.yml --force_yml name=short "${folders[@]}" \
    datasets:train:batch_size_per_gpu=2 datasets:train:gt_size=64 datasets:train:num_worker_per_gpu=1 \
    train:total_iter=2 val:val_freq=2 logger:print_freq=1 logger:save_checkpoint_freq=2 | tee log
  grep -q 'l_pcl: ' log
  test -f experiments/short/models/net_g_latest.pth -a -f experiments/short/models/net_d_latest.pth
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' pcl_loss/__init__.py)
if [ -n "${TAG:-}" ]; then
  test "$TAG" = "v$version"
  grep -q "^## \[$version\] - " CHANGELOG.md
fi

fresh_environment
pip install --quiet build twine
rm -f "$root"/dist/pcl_loss-*
python -m build --outdir "$root/dist" "$root"
wheel=$(ls "$root"/dist/*.whl) sdist=$(ls "$root"/dist/*.tar.gz)
twine check --strict "$wheel" "$sdist"
test "$(wc -c < "$wheel")" -le $MAX_WHEEL
echo "links that lead nowhere on the index, and files of git that the sdist lacks (MANIFEST.in):"
python - "$wheel" <<'EOF' > broken
import re, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
(name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
print(*re.findall(r"\]\((?!https://|#)([^)]+)\)", archive.read(name).decode()), sep="\n", end="")
EOF
tar tzf "$sdist" | cut -d/ -f2- | sort > shipped
git -C "$root" ls-files | grep -v '^\.\(ci\|github\|git[a-z]*\)' | sort | comm -23 - shipped >> broken
cat broken
test ! -s broken

fresh_environment
pip install --quiet "$wheel"
for module in basicsr cv2 torchvision lpips matplotlib; do
  if python -c "import $module" 2> /dev/null; then echo "the core brought $module"; false; fi
done
sed -n '/<!-- test: first -->/,/^```$/p' "$root/README.md" | sed '/^```/d; /^<!--/d' | python -
pcl-loss doctor
if pcl-loss train > said 2>&1; then false; fi
grep -q "pip install 'pcl_loss\[basicsr\]'" said

for archive in "$wheel" "$sdist"; do
  [ "$archive" = "$wheel" ] || fresh_environment
  # shellcheck disable=SC2086
  pip install --quiet $BUILD
  pip install --quiet --no-build-isolation "$archive[basicsr]"
  pcl-loss doctor
  train_two_iterations
  echo "release-check: $(basename "$archive") passed"
done
