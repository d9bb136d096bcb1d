#!/usr/bin/env bash
# All checks, on a machine with Rust, gcc, g++ (for nvcc and PyCUDA), Python 3.11 with pip and venv, and the network; what CI runs.
#
#   tools/check.sh          format, lints, all tests
#   tools/check.sh --slow   and the tests marked #[ignore], the numpy forward on the golden data, the converter on PyTorch's files,
#                           eval's figures and batches' files beside pycocotools and pyarrow
#
# Stops at the first stage that fails, with its exit code. Whole outputs lie in target/check/STAGE.log. Nothing is installed
# globally: the CUDA compiler goes to .cuda/ (tools/cuda/fetch), Python packages to .cuda/python and target/check/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

slow=
case "${1-}" in
    '') ;;
    --slow) slow=1 ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

logs=target/check
mkdir -p "$logs"
rm -f "$logs"/*.log
summary=()

# stage NAME FILTER COMMAND...: runs the command, shows the lines of its output that match FILTER, and the time it took.
# A command that fails shows the end of its output too and ends the run.
stage() {
    local name=$1 filter=$2 start=$SECONDS status
    shift 2
    echo "=== $name: $*"
    set +e
    "$@" </dev/null 2>&1 | tee "$logs/$name.log" | grep --line-buffered -E "$filter"
    status=${PIPESTATUS[0]}
    set -e
    summary+=("$(printf '%-14s %5d s' "$name" $((SECONDS - start)))")
    if [ "$status" -ne 0 ]; then
        echo "--- the end of $logs/$name.log:"
        tail -n 150 "$logs/$name.log"
        echo "=== $name failed (exit code $status) after $((SECONDS - start)) s"
        exit "$status"
    fi
    echo "=== $name: passed in $((SECONDS - start)) s"
}

# A virtual environment with pinned packages, for the checks in numpy.
python_env() {
    local env=target/check/python
    [ -x $env/bin/python ] || python3 -m venv $env
    $env/bin/pip install -q --disable-pip-version-check -r tools/golden/requirements.txt -r tools/data/requirements.txt
}

# One with PyTorch (some gigabytes), whose files the converter must read.
torch_env() {
    local env=target/check/torch
    [ -x $env/bin/python ] || python3 -m venv $env
    $env/bin/pip install -q --disable-pip-version-check torch==2.5.1 numpy==2.4.6
}

results='^test result|^     Running|^   Doc-tests|FAILED|panicked|^error'
stage compiler . tools/cuda/fetch
stage format . cargo fmt --all --check
stage lints '^(warning|error)|^ +-->|Finished' \
    cargo clippy --locked --release --workspace --all-targets -- -D warnings
# First, so that no test finds a simulated driver of an earlier build.
stage driver '^(warning|error)|Finished' cargo build --locked --release -p ptxsim-driver
stage tests "$results" cargo test --locked --release --workspace --no-fail-fast
stage ray . tools/python/check
stage converter . python3 tools/convert/test_to_safetensors.py
stage numba-pycuda . tools/ptxsim/tests/python/run
if [ "$slow" ]; then
    stage slow-tests "$results" cargo test --locked --release --workspace --no-fail-fast -- --ignored
    stage gpu-check . tools/gpu-check --sim
    stage python-env . python_env
    stage torch-env . torch_env
    stage torch-files . target/check/torch/bin/python tools/convert/test_to_safetensors.py --torch
    stage golden . target/check/python/bin/python tools/golden/numpy_check.py tests/data/golden
    stage eval . target/check/python/bin/python tools/check_eval.py target/release/mllmseg
fi

echo
echo "all stages passed in $SECONDS s:"
printf '  %s\n' "${summary[@]}"
awk '/^test result/ { passed += $4; failed += $6; ignored += $8 }
     END { print "  " passed " tests passed, " failed " failed, " ignored " ignored (tools/check.sh --slow)" }' "$logs"/*tests.log
