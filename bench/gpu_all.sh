#!/usr/bin/env bash
# The whole programme on a CUDA card, in parts of under eight minutes: bash bench/gpu_all.sh --part N [--out FOLDER]
#
# Without --part it lists the parts. A part that was cut off goes on where it stopped: rows that are in FOLDER/gpu.jsonl
# already are not measured again. The torch, CUDA, diffusers, PEFT and card of every row are recorded in it. Smaller
# cards are imitated by capping the process's memory (torch.cuda.set_per_process_memory_fraction).
set -euo pipefail
cd "$(dirname "$0")/.."

part="" out="bench/results"
while [ $# -gt 0 ]; do
  case "$1" in
    --part) part="$2"; shift 2 ;;
    --out) out="$2"; shift 2 ;;
    *) echo "gpu_all.sh: what is '$1'? use --part N and --out FOLDER" >&2; exit 2 ;;
  esac
done

python=.venv/bin/python
[ -x "$python" ] || python=python
bench() { timeout 470 "$python" -m bench --append "$out/gpu.jsonl" "$@"; }

LEVERS="latent, checkpointed;plain, checkpointed;8-bit AdamW;sdpa;fp8;int8;nf4"
STREAMS="latent, checkpointed;streamed;streamed, auto;checkpoints in host memory;leanest"
PIXELS="latent, checkpointed;pixel, auto;pixel, leanest;pixel, full;pixel, midcrop;pixel, window;pixel, kept targets"
PAIRS="pairs, sft;dpo;dpo, one by one;dpo, cached reference;dpo, pixel;dpo, pixel, cached reference, one by one;dpo, pixel, leanest"
PLANS="8-bit AdamW;plan, auto;pixel, plan, auto"
METRIC="latent, checkpointed;pixel, by size;pixel, surrogate;pixel, corrected"
SPEED="latent, checkpointed;plain, checkpointed;half checkpointed;channels last;compiled"

case "$part" in
  "") cat <<LIST
 1 tests with the mark gpu          2 SD1.5: levers        3 SD1.5: streamed     4 SD1.5: pixel and pairs
 5 SDXL: levers                     6 SDXL: streamed       7 SDXL: pixel         8 SDXL: pairs
 9 SDXL: speed                     10 SD3: levers         11 SD3: streamed      12 SD3: pixel   13 SD3: pairs
14 SD1.5 capped at 2, 4 and 8 GB   15 SDXL capped at 4, 6, 8 and 12 GB          16 SD3 capped at 4, 8 and 12 GB
17 the bundled demo, from start to picture                18 the table
19 SD1.5: plan "auto"                20 SDXL: plan "auto"                21 SD3: plan "auto"
22 the lean layer: a step beside plain diffusers and PEFT, bundled base and SD1.5 (is it Python that a fast card waits for?)
23 SD1.5: the learned metric    24 SDXL and SD3: the learned metric    25 making one: full-size autoencoders; the bundled, measured
26 launches: kernels of a step, and how long the card waits for Python
LIST
    exit 0 ;;
esac
mkdir -p "$out"
case "$part" in
  1) timeout 470 "$python" -m pytest -m gpu -q 2>&1 | tee "$out/gpu_tests.txt" ;;
  2) bench --models sd15 --cases "$LEVERS" ;;
  3) bench --models sd15 --cases "$STREAMS" ;;
  4) bench --models sd15 --cases "$PIXELS;$PAIRS" ;;
  5) bench --models sdxl --cases "$LEVERS" ;;
  6) bench --models sdxl --cases "$STREAMS" ;;
  7) bench --models sdxl --cases "$PIXELS" ;;
  8) bench --models sdxl --cases "$PAIRS" ;;
  9) bench --models sdxl --cases "$SPEED" ;;
  10) bench --models sd3-medium --cases "$LEVERS" ;;
  11) bench --models sd3-medium --cases "$STREAMS" ;;
  12) bench --models sd3-medium --cases "$PIXELS" ;;
  13) bench --models sd3-medium --cases "$PAIRS" ;;
  14) bench --models sd15 --memory 2,4,8 --cases "8-bit AdamW;nf4;leanest;pixel, leanest" ;;
  15) bench --models sdxl --memory 4,6,8,12 --cases "8-bit AdamW;nf4;leanest;pixel, leanest;dpo, pixel, leanest" ;;
  16) bench --models sd3-medium --memory 4,8,12 --cases "8-bit AdamW;nf4;leanest;pixel, leanest;dpo, pixel, leanest" ;;
  17) timeout 470 "$python" -m trainer train --preset demo --run.out="$out/runs" ;;
  18) "$python" -m bench --append "$out/gpu.jsonl" --table ;;
  19) bench --models sd15 --memory 4,8,24 --cases "$PLANS" ;;
  20) bench --models sdxl --memory 8,12,16,24 --cases "$PLANS" ;;
  21) bench --models sd3-medium --memory 12,16,24 --cases "$PLANS" ;;
  22) timeout 470 "$python" -m bench.beside --model sd15 --sizes 256,512,768 --precision bf16 | tee "$out/beside.txt"
      timeout 470 "$python" -m bench.beside --sizes 64,128,512 --precision bf16 | tee -a "$out/beside.txt" ;;
  23) bench --models sd15 --cases "$METRIC" ;;
  24) bench --models sdxl,sd3-medium --cases "$METRIC" ;;
  25) timeout 240 "$python" -m bench.making --families sd15,sdxl,sd3-medium | tee "$out/making.txt"
      timeout 240 "$python" -m trainer surrogate presets/base --data.path=presets/pictures/pairs --run.out="$out/runs" \
        --force --output "$out/surrogate.safetensors" | tee -a "$out/making.txt"
      timeout 240 "$python" -m bench.surrogate "$out/surrogate.safetensors" | tee -a "$out/making.txt" ;;
  26) timeout 240 "$python" -m bench.launches --model sd15 --sizes 256,512,768 --precision bf16 | tee "$out/launches.txt"
      timeout 240 "$python" -m bench.launches --model sdxl --sizes 1024 --precision bf16 | tee -a "$out/launches.txt" ;;
  *) echo "gpu_all.sh: there is no part '$part'; there are 1 to 26" >&2; exit 2 ;;
esac
