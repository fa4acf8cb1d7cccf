#!/bin/bash
# All that is to be measured on a GPU, in 12 minutes, each step in a file of its own that is written as it goes.
#
#   tests/benchmarks/gpu_session.sh OUT [LM PAIRS SYNTHETIC COLLECTION...]
#   tests/benchmarks/gpu_session.sh --tiny OUT [...]    the same steps on the CPU with tiny models, in a minute or two
#
# LM is the folder of a decoder language model, PAIRS and SYNTHETIC are training data, COLLECTION are BEIR folders, as
# for `python -m searchkit.training.paper`; without them the last step is left out (with --tiny, it makes its own).
# A step that fails or takes too long is noted in OUT/session.log, and the next one begins.
set -u
tiny=; [ "${1:-}" = --tiny ] && { tiny=1; shift; }
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1; shift
lm=${1:-}; pairs=${2:-}; synthetic=${3:-}
[ $# -ge 3 ] && shift 3 || shift $#
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
mkdir -p "$out"
began=$(date +%s)

say() { echo "$(date +%T) +$(($(date +%s) - began)) s: $*" | tee -a "$out/session.log"; }

step() {  # name, seconds at most, command...
  local name=$1 limit=$2; shift 2
  say "$name: started"
  timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.err"
  local code=$?
  [ $code -eq 124 ] && say "$name: stopped after $limit s" || say "$name: exit $code"
}

if [ $tiny ]; then
  export CUDA_VISIBLE_DEVICES=
  step 1-faiss 600 "$python" "$here/gpu.py" --tiny
  step 2-train-7b 600 "$python" "$here/train_7b.py" --tiny
  step 3-prefix 600 "$python" "$here/prefix.py" --tiny --rounds 2
  if [ -z "$lm" ]; then
    "$python" "$here/tiny_lm.py" "$out/tiny" >>"$out/session.log" 2>&1
    lm=$out/tiny/lm pairs=$out/tiny/pairs synthetic=$out/tiny/pairs
    set -- "$out/tiny/words"
  fi
  most=600 size="--steps 2 --batch-size 16 --evaluate-every 1 --queries 5 --documents 20 --dev-queries 5 --dev-documents 20"
else
  step 1-faiss 150 "$python" "$here/gpu.py" --vectors 500000 --rounds 3
  step 2-train-7b 240 "$python" "$here/train_7b.py" --batch-size 512 --steps 1
  step 3-prefix 60 "$python" "$here/prefix.py" --shape-7b
  # The paper's batch: 2,048 queries with a positive and a hard negative each.
  most=270 size="--steps 60 --batch-size 2048 --chunk 512 --max-length 128 --evaluate-every 20 --queries 150 --documents 1000"
fi
if [ -n "$lm" ]; then
  collections=(); for each in "$@"; do collections+=(--eval "$each"); done
  # shellcheck disable=SC2086
  step 4-paper $most "$python" -m searchkit.training.paper "$lm" "$out/paper" --pairs "$pairs" --synthetic "$synthetic" \
    "${collections[@]}" $size
else
  say "4-paper: left out, no language model is given"
fi
say "done; see $out"
