#!/bin/sh
# Make .venv from requirements.lock, or reuse it: tools/env.sh [python3]
# .venv/.installed holds the lock's checksum and the folder; .venv/.installing marks an install that did not finish.
set -eu
cd "$(dirname "$0")/.."
python="${1:-python3}"
venv=.venv
py=$venv/bin/python
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

fail() {
    echo "tools/env.sh: $*" >&2
    exit 1
}

if command -v flock >/dev/null; then # make test and make reproduce may start together
    exec 9<requirements.lock
    flock -n 9 || { echo "another install is at work here; waiting for it" && flock 9; }
fi

key="$(cat requirements.lock requirements-headless.lock pyproject.toml tools/env.sh | cksum) $PWD"
if [ -x $py ] && [ ! -e $venv/.installing ] && [ "$(cat $venv/.installed 2>/dev/null)" = "$key" ]; then
    exit 0
fi

version='import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))'
wanted="$("$python" -c "$version" 2>&1)" ||
    fail "$python says '$wanted'; Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11"
clear=
if [ -e $venv ] && { [ -e $venv/.installing ] || [ "$($py -c "$version" 2>/dev/null)" != "$wanted" ]; }; then
    echo "$venv is of an interrupted install or of another Python: made anew"
    clear=--clear
fi
free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1000000))
if [ ! -e $venv/.installed ] && [ "$(uname)" = Linux ] && [ "$free" -lt 8 ]; then
    fail "no disk space: $free GB are free here, $venv needs about 8 (torch comes with its CUDA libraries)"
fi

make_venv() {
    "$python" -m venv "$@" $venv || fail "'$python -m venv' failed; on Debian or Ubuntu: sudo apt install python3-venv"
    touch $venv/.installing
}

# opencv-python (facexlib wants it) and opencv-python-headless (pyiqa wants it) fill the same folder cv2 and the last one
# wins: with pip the former, with uv any. It needs libGL, which servers lack, and then pyiqa cannot be imported.
# So the headless one is installed once more, on top.
# The lock is whole, so --no-deps: pyiqa lists bitsandbytes, which it leaves out (pyproject.toml says why).
with_uv() {
    sed -n '/^uv==/,/^    # via/p' requirements.lock >$venv/uv.lock
    uv_install="$py -m uv pip install --python $py --no-deps --require-hashes"
    $py -m pip install -q --require-hashes -r $venv/uv.lock && $uv_install -r requirements.lock &&
        $uv_install -q --reinstall -r requirements-headless.lock
}

with_pip() {
    pip_install="$py -m pip install --progress-bar off --no-deps --require-hashes"
    $pip_install -r requirements.lock && $pip_install -q --force-reinstall -r requirements-headless.lock
}

echo "installing requirements.lock into $venv: about 6.5 GB; 1 to 5 minutes plus the download, only this once"
make_venv $clear
if ! with_uv; then
    echo "uv did not manage; once more with pip, which is slower"
    make_venv --clear
    with_pip || fail "the install failed; see above"
fi
$py -m pip install -q --no-deps --no-build-isolation -e .
problems="$($py -m pip check)" || problems="$(echo "$problems" | grep -v ' requires bitsandbytes, ')" || problems=
case "$problems" in "" | "No broken"*) ;; *) fail "$problems" ;; esac
# uv leaves bytecode to the first import. Where PYTHONDONTWRITEBYTECODE is set (containers) none is ever written, and each
# process compiles 4700 files before load("pocket") is done. A few packages ship templates that are no Python: no failure.
echo "compiling the packages for Python: half a minute"
$py -m compileall -qq -j 0 $venv/lib || true
printf '%s' "$key" >$venv/.installed
rm $venv/.installing
