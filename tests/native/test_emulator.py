"""The emulated device gives the same results as a real device and detects the intended faults."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from .conftest import Case

SEEDS = range(20)


class Sum:
    """The arrays of one call of the probe kernel `sum`, and its result."""

    def __init__(self, n: int = 1000, blocks: int = 4, ticket: np.ndarray | None = None) -> None:
        self.x = np.arange(n, dtype=np.float32)
        self.partials = np.full(blocks, np.nan, np.float32)
        self.ticket = np.zeros(1, np.uint32) if ticket is None else ticket
        self.out = np.full(1, np.nan, np.float32)

    def launch(self, native: ModuleType, fault: str = "none", stream: object = None) -> None:
        probes = native.probes
        fault = getattr(probes.Fault, fault)
        probes.sum(fault, self.x, self.partials, self.ticket, self.out, stream)

    @property
    def right(self) -> bool:
        return float(self.out[0]) == float(self.x.sum(dtype=np.float64))


# -- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 1000])
def test_a_sum_over_blocks_is_right_in_any_order(native: ModuleType, n: int) -> None:
    call = Sum(n)
    for seed in SEEDS:
        native.emulator.configure(seed=seed)
        call.launch(native)
        assert call.right and call.ticket[0] == 0


def test_blocks_run_in_a_seeded_order(native: ModuleType) -> None:
    def order(seed: int) -> list[int]:
        native.emulator.configure(seed=seed)
        return native.probes.order(3, 5, 2).tolist()

    assert sorted(order(1)) == list(range(30))
    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize("threads", [32, 256])
@pytest.mark.parametrize("width", [2, 8, 32])
def test_warp_operations_follow_the_programming_guide(
    native: ModuleType, threads: int, width: int
) -> None:
    thread = np.arange(threads)
    lane, first = thread % 32, thread // width * width
    last = first + width - 1
    segment = (1 << width) - 1 << lane // width * width
    expected = np.stack(
        [
            first + 1 % width,
            np.maximum(thread - 1, first),
            np.minimum(thread + 1, last),
            thread ^ 1,
            segment & 0xAAAAAAAA,
            segment >> 3 & 1,
            0 * thread,
            first % 32 + lane % width,
        ],
        axis=1,
    )
    np.testing.assert_array_equal(native.probes.warp(threads, width), expected)


@pytest.mark.parametrize("threads", [1, 31, 64, 200])
def test_exited_threads_do_not_hold_up_a_barrier(native: ModuleType, threads: int) -> None:
    thread = np.arange(threads)
    stay = thread % 3 != 0
    expected = np.where(stay, stay.sum(), -1)
    np.testing.assert_array_equal(native.probes.early_exit(threads), expected)


def test_half_conversions_equal_numpy_for_every_half_and_its_neighbours(native: ModuleType) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(over="ignore"):
        floats = halves.view(np.float16).astype(np.float32)
        finite = floats[np.isfinite(floats)]
        middle = (finite + np.roll(finite, 1)) / 2
        probe = np.concatenate(
            [finite, middle, np.nextafter(middle, np.float32(np.inf)), [65519.99, 65520, 1e30]]
        ).astype(np.float32)
        expected = probe.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(native.probes.from_half(halves), floats)
    np.testing.assert_array_equal(native.probes.to_half(probe), expected)
    assert np.isnan(native.probes.from_half(native.probes.to_half(np.float32([np.nan]))))


def test_bfloat16_conversions_round_to_nearest_even(native: ModuleType) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16).astype(np.uint32)
    words[:4] = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF]  # ties, just above one, overflow
    x = words.view(np.float32)
    x = x[np.isfinite(x)]
    got = native.probes.from_bfloat16(native.probes.to_bfloat16(x)).astype(np.float64)
    step = np.ldexp(1.0, np.maximum(np.frexp(x)[1], -125) - 8)  # 8 significant bits
    expected = np.round(x.astype(np.float64) / step) * step  # numpy rounds to even
    expected = np.where(np.abs(expected) > 3.39e38, np.copysign(np.inf, x), expected)
    np.testing.assert_array_equal(got, expected)
    assert np.isnan(native.probes.from_bfloat16(native.probes.to_bfloat16(np.float32([np.nan]))))


def test_a_captured_graph_runs_only_when_replayed(native: ModuleType) -> None:
    emulator = native.emulator
    stream, call, before = emulator.Stream(), Sum(), emulator.launches()
    emulator.begin_capture(stream)
    call.launch(native, stream=stream)
    call.launch(native, stream=stream)
    graph = emulator.end_capture(stream)
    assert len(graph) == 2 and np.isnan(call.out[0]) and emulator.launches() == before
    graph.replay(stream)
    assert call.right and emulator.launches() == before + 2
    call.x += 1
    graph.replay()
    assert call.right


def test_a_stream_keeps_its_order(native: ModuleType) -> None:
    emulator = native.emulator
    for seed in SEEDS:
        emulator.configure(seed=seed, deferred=True)
        streams = [emulator.Stream(), emulator.Stream()]
        calls = [Sum(64, 2), Sum(64, 2)]
        after = [Sum(1, 1), Sum(1, 1)]
        for stream, call, then in zip(streams, calls, after, strict=True):
            then.x = call.out  # the second launch reads the result of the first
            call.launch(native, stream=stream)
            then.launch(native, stream=stream)
            assert np.isnan(call.out[0])
        emulator.synchronize()
        assert all(call.right and then.out[0] == call.out[0]
                   for call, then in zip(calls, after, strict=True))  # fmt: skip


# -- faults that the emulator detects ----------------------------------------------------------


def test_a_missing_barrier_gives_wrong_sums_for_some_order(native: ModuleType) -> None:
    wrong = 0
    for seed in SEEDS:
        native.emulator.configure(seed=seed)
        call = Sum()
        call.launch(native, "missing_barrier")
        wrong += not call.right
    assert wrong > len(SEEDS) // 2


@pytest.mark.parametrize(
    ("fault", "reports"),
    [
        ("deadlock", ["deadlock in block (", "__syncthreads at", "__shfl_xor_sync with mask"]),
        ("divergent_barrier", ["different __syncthreads", "threads 0..31 ", "threads 32..63 "]),
        ("absent_lane", ["lane 15 reads from lane 31, which takes no part"]),
    ],
)
def test_threads_that_miss_each_other_are_reported(
    native: ModuleType, fault: str, reports: list[str]
) -> None:
    with pytest.raises(RuntimeError, match="emulator: ") as error:
        Sum().launch(native, fault)
    for text in [*reports, "probes.cu:"]:
        assert text in str(error.value)
    call = Sum()
    call.launch(native)  # the device works again
    assert call.right


def test_a_ticket_shared_by_two_streams_gives_wrong_sums(native: ModuleType) -> None:
    def wrong(shared: bool) -> int:
        count = 0
        for seed in SEEDS:
            native.emulator.configure(seed=seed, deferred=True)
            ticket = np.zeros(1, np.uint32) if shared else None
            calls = [Sum(ticket=ticket), Sum(ticket=ticket)]
            streams = [native.emulator.Stream() for _ in calls]
            for call, stream in zip(calls, streams, strict=True):
                call.launch(native, stream=stream)
            native.emulator.synchronize()
            count += not all(call.right for call in calls)
        return count

    assert wrong(shared=False) == 0
    assert wrong(shared=True) > len(SEEDS) // 2


def test_a_launch_that_no_device_accepts_is_refused(native: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="invalid configuration"):
        native.probes.early_exit(1025)
    with pytest.raises(RuntimeError, match="invalid configuration"):
        native.probes.order(1, 1 << 16, 1)


# -- faults that the sanitizers detect ---------------------------------------------------------


@pytest.mark.parametrize("name", ["sum:none", "streams"])
def test_sanitizers_accept_correct_kernels(case: Case, sanitizer: str, name: str) -> None:
    result = case(sanitizer, name)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr


@pytest.mark.parametrize(
    ("variant", "fault", "reports"),
    [
        ("asan", "off_by_one", ["heap-buffer-overflow", "probes.cu:"]),
        ("asan", "shared_overrun", ["insufficient space", "probes.cu:"]),
        ("asan", "misaligned", ["misaligned address", "probes.cu:"]),
        ("asan", "deadlock", ["deadlock in block"]),
        ("tsan", "deadlock", ["deadlock in block"]),
        ("tsan", "missing_barrier", ["data race", "probes.cu:"]),
        ("tsan", "missing_syncwarp", ["data race", "probes.cu:"]),
        ("tsan", "missing_release_fence", ["data race", "probes.cu:"]),
        ("tsan", "missing_acquire_fence", ["data race", "probes.cu:"]),
    ],
)
def test_sanitizers_find_planted_faults(
    case: Case, variant: str, fault: str, reports: list[str]
) -> None:
    result = case(variant, f"sum:{fault}")
    assert result.returncode != 0
    for text in reports:
        assert text in result.stdout + result.stderr
