#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command of under 9 minutes:
#
#   benchmarks/gpu_check.sh FOLDER
#
# Builds the operators for the GPU that is there if no loadable build is installed, runs the tests with
# CUDA required, runs every CUDA operator on small awkward shapes under compute-sanitizer where the
# machine lets it, then the benchmarks. FOLDER gets the logs, summary.txt, gpu.json and the report.
# Exit status: 0 if all that could run passed, 1 if something failed, 2 without a GPU.
# Needs the test extra (`pip install -e '.[test]'`); without pip's network, what is installed is used.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: benchmarks/gpu_check.sh FOLDER" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
summary="$out/summary.txt"
: >"$summary"
failed=0
deadline=520 # seconds; the whole must stay under 9 minutes

say() { printf '%s\n' "$*" | tee -a "$summary"; }

part() { # part NAME SECONDS COMMAND...: runs it with a time limit, its output in FOLDER/NAME.log
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  [ $((start + limit)) -le $deadline ] || limit=$((deadline - start))
  if [ $limit -lt 5 ]; then
    say "FAILED  $name: not run, no time left"
    failed=1
    return 1
  fi
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  case $status in
    0) say "passed  $name ($((SECONDS - start)) s)" ;;
    124 | 137) say "FAILED  $name: still running after $limit s; see $name.log" ;;
    *) say "FAILED  $name (exit $status, $((SECONDS - start)) s); see $name.log" ;;
  esac
  [ "$status" -eq 0 ] || failed=1
  return "$status"
}

has_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

has_kernels() { # the CUDA library is there, loads, and holds code for this GPU
  "$python" - <<'PYTHON' 2>/dev/null
import sys
from protofast import info
cuda = info.collect(self_check=False)["cuda"]
sys.exit(not ("kernels are loaded" in cuda["state"] and cuda["devices"][0]["compiled"]))
PYTHON
}

sanitize() { # sanitize TOOL: a machine that refuses is named as such, not counted as passed
  local tool=$1 limit=30 status=0
  if ! command -v compute-sanitizer >/dev/null; then
    say "not run $tool: compute-sanitizer is not installed"
    return
  fi
  [ "$limit" -le $((deadline - SECONDS)) ] || limit=$((deadline - SECONDS))
  if [ "$limit" -lt 5 ]; then
    say "FAILED  $tool: not run, no time left"
    failed=1
    return
  fi
  timeout --kill-after=5 "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -c \
    'import torch; torch.ones(8, device="cuda").sum().item()' >"$out/$tool-try.log" 2>&1 || status=$?
  case $status in
    0) ;;
    124 | 137)
      say "FAILED  $tool: a first try was still running after $limit s; see $tool-try.log"
      failed=1
      return
      ;;
    *)
      say "refused $tool: this machine does not let compute-sanitizer look; see $tool-try.log"
      return
      ;;
  esac
  # Without torch's cache every tensor is an allocation of its own, whose bounds are known.
  part "$tool" 70 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
    --error-exitcode 9 --kernel-name-exclude kns=at:: "$python" benchmarks/small_shapes.py || true
}

if ! has_gpu; then
  say "no usable GPU here: nothing was run"
  exit 2
fi
say "GPU: $("$python" -c 'import torch; print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), "torch", torch.__version__)')"
say "commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"

if has_kernels; then
  say "passed  build: kernels for this GPU are there already"
elif ! part build 220 env PROTOFAST_CUDA=1 "$python" setup.py build_ext --inplace || ! has_kernels; then
  say "FAILED  build: the CUDA kernels do not load, or have no code for this GPU; see build.log"
  exit 1
fi
part info 30 "$python" -m protofast.info
part tests 120 env PROTOFAST_REQUIRE_BUILD=1 PROTOFAST_REQUIRE_CUDA=1 "$python" -m pytest tests \
  -k "cuda or gpu" -q -p no:cacheprovider
part benchmarks 120 "$python" -m pytest --benchmark-only benchmarks --quick --device cuda -q \
  -p no:cacheprovider "--benchmark-json=$out/gpu.json"
if [ -s "$out/gpu.json" ]; then
  part report 30 "$python" benchmarks/report.py "$out/gpu.json" --out "$out"
fi
for tool in memcheck racecheck initcheck; do sanitize "$tool"; done

say "all in $SECONDS s; $([ $failed -eq 0 ] && echo 'nothing failed' || echo 'SOMETHING FAILED')"
exit $failed
