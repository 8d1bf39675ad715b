#!/bin/sh
# Calls convserve from a shell with buf curl, which asks the server for the contract: sh convolve.sh [HOST:PORT [PIECES]]
set -eu

service="http://${1:-localhost:50051}/convserve.v1.ConvolutionService"
call() { buf curl --protocol grpc --http2-prior-knowledge --data "$1" "$service/$2"; }

# A tensor's bytes are in base64 in JSON: "AAAAQA==" is 2.0, and "AACAPwAAAEA=" is 1.0 and 2.0.
layer='{"inline": {
  "conv2d": {"filters": 1, "kernelSize": {"height": 1, "width": 1}, "dataFormat": "DATA_FORMAT_CHANNELS_LAST", "useBias": false},
  "weights": {"kernel": {"dtype": "DTYPE_FLOAT32", "shape": [1, 1, 1, 1], "data": "AAAAQA=="}}}}'

# 1. A convolution with given weights: each number twice.
input='{"dtype": "DTYPE_FLOAT32", "shape": [1, 1, 2, 1], "data": "AACAPwAAAEA="}'
call "{\"layers\": [$layer], \"input\": $input}" Convolve

# 2. An error: the message names each wrong field. The details are messages of google.rpc, in base64 without padding.
wrong='{"layers": [{"inline": {"conv2d": {"filters": 5, "groups": 2}}}], "input": '"$input}"
error=$(call "$wrong" Convolve 2>&1) || true
echo "$error"
echo "$error" | sed -n 's/.*"value": "\(.*\)".*/\1==/p' | while read -r detail; do
  echo "$detail" | base64 --decode --ignore-garbage 2>/dev/null | tr -c '[:print:]' '\n' || true
done

# 3. A stream: one item of 128 pieces of 786,432 bytes, 100 MB each way. 16 characters of base64 are three numbers.
pieces="${2:-128}"
bytes=$((pieces * 786432))
{
  echo "{\"start\": {\"layers\": [$layer], \"pieceBytes\": 786432, \"expectedBytes\": $((2 * bytes))}}"
  echo "{\"item\": {\"itemId\": 1, \"dtype\": \"DTYPE_FLOAT32\", \"shape\": [1, $((256 * pieces)), 768, 1]}}"
  for _ in $(seq "$pieces"); do
    printf '{"piece": "'
    yes AACAPwAAgD8AAIA/ | head -n 65536 | tr -d '\n'
    echo '"}'
  done
} | call @- ConvolveStream | grep -o AAAAQAAAAEAAAABA | wc -l | { read -r threes; echo "received $((12 * threes)) bytes of 2.0"; }
