# Runs the smoke test under all tools of compute-sanitizer at the same time, because most of their
# time is spent by one thread of the host. Exits with 1 if a tool finds an error or a test fails. Exits
# with 3 if a tool does not run, or if none sees the kernels: memcheck must find a planted error.

# Each tensor is a separate allocation, so that the bytes beside it are out of bounds.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
# API errors are not reported: torch's probes cause some, and our launches check for errors anyway.
memcheck='memcheck --report-api-errors no'

# Without the filter of kernels a tool is slower. Importing torch may take longer than the default
# launch timeout.
sanitize() { # NAME "TOOL OPTIONS" PROGRAM...
    name=$1 tool=$2
    shift 2
    {
        compute-sanitizer --tool $tool --error-exitcode 86 --print-limit 20 --launch-timeout 0 \
            --kernel-name kns=vae_fused "$@" >"$name.out" 2>&1
        status=$?
        [ $status != 0 ] || grep -q '[0-9] passed' "$name.out" || status=5 # all were skipped
        sed "s/^/$name: /" "$name.out"
        echo "$name $status" | tee -a statuses
    } &
}

sanitize planted "$memcheck" "$PYTHON" "$ROOT/tests/gpu/planted_error.py"
for tool in "$memcheck" racecheck synccheck initcheck; do
    sanitize "${tool%% *}" "$tool" "$PYTHON" -m pytest -k small_odd \
        "$ROOT/tests/gpu/test_every_kernel.py"
done
wait
grep -qx 'planted 86' statuses || exit 3
grep -v planted statuses | grep -qE ' (1|86)$' && exit 1
[ "$(grep -c ' 0$' statuses)" = 4 ] || exit 3
