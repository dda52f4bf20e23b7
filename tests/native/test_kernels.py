"""The guarantees of the CUDA kernels on the emulated device, in any order of blocks and threads.

These tests cover behaviour in which a real device may differ from a CPU. `test_math.py` and the
tests of the public functions cover the formulas.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .calls import DTYPES, Call, backward, empty_like, forward
from .conftest import Case

KEY = (0x0123456789ABCDEF, 42)
# (shape, summed dimensions), from one element to rows of several tiles of 2048
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one element": ((1,), (0,)),
    "elementwise": ((7, 300), ()),
    "two columns": ((3000, 2), (1,)),
    "three columns": ((1501, 3), (1,)),
    "four columns": ((1501, 4), (1,)),
    "five columns": ((1501, 5), (1,)),
    "many rows of three": ((17003, 3), (1,)),  # here and in the next two, blocks have several tiles
    "many rows of eight": ((13001, 8), (1,)),
    "many latents": ((96, 4, 16, 16), (1, 2, 3)),
    "a row per sample": ((40, 130), (1,)),
    "images": ((3, 4, 9, 11), (1, 2, 3)),
    "wide images": ((3, 4, 8, 10), (1, 2, 3)),
    "latents": ((3, 4, 8, 16), (1, 2, 3)),  # transposed: pixels of four channels, in whole warps
    "summed latents": ((2, 4, 24, 16), (0, 1, 2, 3)),
    "deep images": ((2, 16, 6, 18), (1, 2, 3)),
    "summed deep images": ((3, 8, 4, 4), (0, 1, 2, 3)),
    "large deep images": ((2, 8, 16, 18), (1, 2, 3)),
    "summed large deep images": ((3, 8, 12, 16), (0, 1, 2, 3)),
    "rows that are no whole vectors": ((9, 1001), (1,)),
    "long rows that are no whole vectors": ((3, 4099), (1,)),
    "one long row": ((9, 1001), (0, 1)),
    "long rows": ((3, 5000), (1,)),
    "long rows by groups of lanes": ((8, 4100), (1,)),
    "many long rows": ((41, 2049), (1,)),
    "runs that are no whole vectors": ((3, 2049), (1,)),
    "inner kept": ((4, 6, 8), (1,)),
    "summed channels": ((3, 16, 5, 6), (1,)),  # transposed: vectors of memory, but not of noise
    "partly summed images": ((2, 6, 5, 8), (0, 2, 3)),
    "longer rows": ((3, 9000), (1,)),
    "outer summed": ((6, 50, 7), (0, 2)),
}


def inputs(native: ModuleType, shape: tuple[int, ...], dtype: str, layout: str) -> list[np.ndarray]:
    """Returns mu, raw, eps and grad_z."""
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((4, *shape), dtype=np.float32)
    if layout == "chunked" and len(shape) > 1:
        packed = np.moveaxis(packed, 0, 1).reshape(shape[0], -1, *shape[2:])
    elif layout == "transposed" and len(shape) > 1:
        packed = np.ascontiguousarray(np.moveaxis(packed, 2, -1))
    stored = (
        native.probes.to_bfloat16(packed) if dtype == "bfloat16" else packed.astype(DTYPES[dtype])
    )
    if layout == "chunked" and len(shape) > 1:
        return np.split(stored, 4, axis=1)
    if layout == "transposed" and len(shape) > 1:
        stored = np.moveaxis(stored, -1, 2)
    # These are separate arrays, because parts of one array would not be aligned for vectors.
    return [x.copy() for x in stored] if layout == "dense" else list(stored)


def values(native: ModuleType, x: np.ndarray) -> np.ndarray:
    return (native.probes.from_bfloat16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def run(
    native: ModuleType, device: str, shape: str, dtype: str, layout: str, **options: Any
) -> Call:
    sizes, dims = SHAPES[shape]
    mu, raw, _, grad_z = inputs(native, sizes, dtype, layout)
    options = {"dims": dims, "key": KEY, "kl_factor": 0.5, **options}
    call = forward(native, device, mu, raw, **options)
    assert call.kl is not None
    grad_kl = np.linspace(-1, 1, call.kl.size, dtype=call.kl.dtype)
    grads = backward(native, device, mu, raw, grad_z=grad_z, grad_kl=grad_kl, **options)
    call.grad_mu, call.grad_raw = grads.grad_mu, grads.grad_raw
    return call


NAMES = ("z", "kl", "grad_mu", "grad_raw")


@pytest.mark.parametrize("layout", ["dense", "chunked", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_devices_agree(native: ModuleType, shape: str, dtype: str, layout: str) -> None:
    cpu, cuda = (run(native, device, shape, dtype, layout) for device in ("cpu", "cuda"))
    rtol = {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    for name in NAMES:
        a, b = (values(native, getattr(call, name)) for call in (cuda, cpu))
        np.testing.assert_allclose(a, b, rtol=2e-6 if name == "kl" else rtol, atol=rtol)
    assert cuda.key is not None and tuple(cuda.key) == KEY


@pytest.mark.parametrize("layout", ["dense", "chunked", "transposed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_offsets_are_the_same_as_those_of_large_tensors(
    native: ModuleType, shape: str, dtype: str, layout: str
) -> None:
    """Views with offsets above 2^31 are read element by element and summed in a different order."""
    small = run(native, "cuda", shape, dtype, layout)
    native.emulator.configure(large=True)
    large = run(native, "cuda", shape, dtype, layout)
    sizes, dims = SHAPES[shape]
    mu, raw, *_ = inputs(native, sizes, dtype, layout)
    is_contiguous = native.select_kernel(mu, raw, empty_like(mu), dims)["access"] == "contiguous"
    rtol = 0.0 if is_contiguous else 2e-6 if dtype == "float32" else 1e-2
    for name in NAMES:
        a, b = (values(native, getattr(call, name)) for call in (large, small))
        np.testing.assert_allclose(a, b, rtol=min(rtol, 2e-6) if name == "kl" else rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "layout", "access"),
    [
        ("two columns", "dense", "contiguous"),
        ("a row per sample", "dense", "contiguous"),
        ("wide images", "dense", "contiguous"),
        ("long rows", "chunked", "strided"),
        ("wide images", "chunked", "strided"),
        ("summed latents", "chunked", "strided"),
        ("wide images", "transposed", "channels_last"),
        ("latents", "transposed", "channels_last"),
        ("summed deep images", "transposed", "channels_last"),
    ],
)
def test_common_layouts_have_their_fast_path(
    native: ModuleType, dtype: str, shape: str, layout: str, access: str
) -> None:
    """Other loops would compute the same results more slowly, which no other test would detect."""
    sizes, dims = SHAPES[shape]
    mu, raw, *_ = inputs(native, sizes, dtype, layout)
    choice = {"access": access, "is_default": True, "has_fast_path": True}
    choice["pixel_pairs"] = (shape, layout) == ("latents", "transposed") and dtype != "float32"
    assert native.select_kernel(mu, raw, empty_like(mu), dims) == choice
    native.emulator.configure(large=True)
    large = native.select_kernel(mu, raw, empty_like(mu), dims)
    assert large["access"] == (access if access == "contiguous" else "scalar")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("images", [1, 3])
def test_chunks_of_channels_last_tensors(native: ModuleType, dtype: str, images: int) -> None:
    """With four 16-bit channels, the second half is aligned to only 8 bytes."""
    dims, rng = (1, 2, 3), np.random.default_rng(0)
    moments = rng.standard_normal((images, 8, 16, 8), dtype=np.float32)
    if dtype == "bfloat16":
        moments = native.probes.to_bfloat16(moments)
    mu, raw = np.split(np.moveaxis(moments, -1, 1), 2, axis=1)
    results = []
    for device in ("cpu", "cuda"):
        z = np.moveaxis(np.zeros((images, 8, 16, 4), mu.dtype), -1, 1)
        kl = np.zeros(images, np.float32)
        native.forward(device, mu, raw, dims=dims, z=z, kl=kl, key=KEY)
        results.append((values(native, z), kl))
    choice = {
        "access": "channels_last",
        "is_default": True,
        "has_fast_path": True,
        "pixel_pairs": dtype == "bfloat16",
    }
    assert native.select_kernel(mu, raw, z, dims) == choice
    rtol = 1e-2 if dtype == "bfloat16" else 2e-6
    for (a, b), tolerance in zip(zip(*results, strict=True), (rtol, 2e-6), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_pixels_are_stored_in_pairs_where_all_begin_so(native: ModuleType) -> None:
    def pixels(padding: int = 0, offset: int = 0) -> np.ndarray:
        block = np.zeros(2 * (512 + padding) + offset, np.uint16)[offset:].reshape(2, -1)
        return np.moveaxis(block[:, :512].reshape(2, 8, 16, 4), -1, 1)

    for z, paired in (
        (pixels(), True),
        (pixels(padding=16), True),
        (pixels(padding=8), False),  # the second image begins in the middle of a pair
        (pixels(offset=4), False),
        (pixels(offset=8), True),
    ):
        choice = native.select_kernel(pixels(), pixels(), z, (1, 2, 3))
        assert choice["access"] == "channels_last" and choice["has_fast_path"]
        assert choice["pixel_pairs"] == paired


def test_a_broadcast_tensor_has_to_be_aligned_as_the_others(native: ModuleType) -> None:
    """A tensor with one value per channel, expanded over pixels, is read in vectors of channels."""
    mu = np.moveaxis(np.zeros((2, 8, 16, 4), np.float32), -1, 1)
    channels = np.zeros(8, np.float32)
    for offset, access in ((0, "channels_last"), (1, "scalar"), (2, "channels_last")):
        raw = np.broadcast_to(channels[offset : offset + 4, None, None], mu.shape)
        assert native.select_kernel(mu, raw, empty_like(mu), (1, 2, 3))["access"] == access


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_order_of_blocks_or_threads_changes_a_bit(
    native: ModuleType, shape: str, dtype: str
) -> None:
    first = run(native, "cuda", shape, dtype, "dense")
    for seed, sm_count in ((2, 132), (3, 1), (4, 4)):
        native.emulator.configure(seed=seed, sm_count=sm_count)
        again = run(native, "cuda", shape, dtype, "dense")
        for name in NAMES:
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


@pytest.mark.parametrize("layout", ["dense", "chunked", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("word", [2**32, 2**64])
@pytest.mark.parametrize("before", [1, 100, 511, 512, 513, 1024])
def test_a_counter_may_wrap_within_a_tile(
    native: ModuleType, layout: str, dtype: str, word: int, before: int
) -> None:
    """On the fast path, all counters of a tile (of 512 blocks in float) share one high word."""
    shape = "one long row" if layout == "dense" else "summed large deep images"
    cpu, cuda = (
        run(native, device, shape, dtype, layout, key=(7, word - before))
        for device in ("cpu", "cuda")
    )
    rtol = {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    for name in NAMES:
        a, b = (values(native, getattr(call, name)) for call in (cuda, cpu))
        np.testing.assert_allclose(a, b, rtol=2e-6 if name == "kl" else rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("high", [np.inf, 200.0, 150.0])
def test_the_gradient_ends_at_the_clamp_and_not_where_exponentials_do(
    native: ModuleType, dtype: str, high: float
) -> None:
    """Forward kernels clip exponents at 178, because larger ones do not change their results."""
    raw = np.resize(np.float32([0, -9, 120, 149, 151, 179, 199, 201, 999, np.inf, np.nan]), 4099)
    mu, grad_z = np.ones_like(raw), np.full_like(raw, 1e-30)
    if dtype == "bfloat16":
        mu, raw, grad_z = (native.probes.to_bfloat16(x) for x in (mu, raw, grad_z))
    options = {
        "dims": (0,),
        "key": KEY,
        "latent_options": {"posterior": {"low": -9.0, "high": high}},
    }
    grad_kl = np.full(1, 1e-30, np.float32)
    cpu, cuda = (
        values(
            native,
            backward(native, device, mu, raw, grad_z=grad_z, grad_kl=grad_kl, **options).grad_raw,
        )
        for device in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(cuda == 0, cpu == 0)
    np.testing.assert_array_equal(np.isfinite(cuda), np.isfinite(cpu))
    assert (cpu == 0).any() == (high < 999)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_is_one_launch_each_way(native: ModuleType, shape: str) -> None:
    before = native.emulator.launches()
    run(native, "cuda", shape, "float32", "dense")
    assert native.emulator.launches() - before == 2


@pytest.mark.parametrize("shape", ["one long row", "long rows", "long rows by groups of lanes"])
def test_calls_on_two_streams_do_not_meet(native: ModuleType, shape: str) -> None:
    sizes, dims = SHAPES[shape]
    mu, raw, *_ = inputs(native, sizes, "float32", "dense")
    expected = forward(native, "cuda", mu, raw, dims=dims, key=KEY)
    streams = [native.emulator.Stream() for _ in range(3)]
    for seed in range(10):
        native.emulator.configure(seed=seed, deferred=True)
        calls = [
            forward(native, "cuda", mu, raw, dims=dims, key=KEY, stream=stream)
            for _ in range(2)
            for stream in streams
        ]
        native.emulator.synchronize()
        for call in calls:
            np.testing.assert_array_equal(call.kl, expected.kl)
            np.testing.assert_array_equal(call.z, expected.z)


def test_graphs_captured_on_one_stream_may_replay_together(native: ModuleType) -> None:
    sizes, dims = SHAPES["one long row"]
    mu, raw, *_ = inputs(native, sizes, "float32", "dense")
    expected = forward(native, "cuda", mu, raw, dims=dims, key=KEY)
    emulator = native.emulator
    home, streams, calls, graphs = emulator.Stream(), [emulator.Stream() for _ in range(3)], [], []
    for _ in streams:
        emulator.begin_capture(home)
        calls.append(forward(native, "cuda", mu, raw, dims=dims, key=KEY, stream=home))
        graphs.append(emulator.end_capture(home))
    for seed in range(10):
        emulator.configure(seed=seed, deferred=True)
        for call in calls:
            call.kl.fill(np.nan)
        eager = forward(native, "cuda", mu, raw, dims=dims, key=KEY, stream=home)
        for graph, stream in zip(graphs, streams, strict=True):
            graph.replay(stream)
        emulator.synchronize()
        for call in [*calls, eager]:
            np.testing.assert_array_equal(call.kl, expected.kl)


def test_eager_calls_while_another_thread_captures_keep_their_own_slots(
    native: ModuleType,
) -> None:
    """Capture is a property of each stream and does not depend on the threads that use it."""
    sizes, dims = SHAPES["one long row"]
    mu, raw, *_ = inputs(native, sizes, "float32", "dense")
    emulator = native.emulator
    options = {"dims": dims, "key": KEY}
    expected = forward(native, "cuda", mu, raw, **options)
    eager_stream, captured_stream = emulator.Stream(), emulator.Stream()
    turn = [threading.Event() for _ in range(9)]
    captured, graphs, eager = [], [], []

    def capture() -> None:
        for k in range(3):
            assert turn[3 * k].wait(60)
            emulator.begin_capture(captured_stream)
            captured.append(forward(native, "cuda", mu, raw, stream=captured_stream, **options))
            turn[3 * k + 1].set()
            assert turn[3 * k + 2].wait(60)  # an eager call of the other thread
            captured.append(forward(native, "cuda", mu, raw, stream=captured_stream, **options))
            graphs.append(emulator.end_capture(captured_stream))

    thread = threading.Thread(target=capture)
    thread.start()
    for k in range(3):
        eager.append(forward(native, "cuda", mu, raw, stream=eager_stream, **options))
        turn[3 * k].set()
        assert turn[3 * k + 1].wait(60)
        eager.append(forward(native, "cuda", mu, raw, stream=eager_stream, **options))
        turn[3 * k + 2].set()
    thread.join(60)
    assert not thread.is_alive() and [len(graph) for graph in graphs] == [2, 2, 2]
    assert all(np.isnan(call.kl).all() for call in captured)  # captured launches have not run yet
    for seed in range(10):
        emulator.configure(seed=seed, deferred=True)
        for call in captured:
            call.kl.fill(np.nan)
        streams = [emulator.Stream() for _ in graphs]  # a destroyed stream drops its work
        for graph, stream in zip(graphs, streams, strict=True):
            graph.replay(stream)
            eager.append(forward(native, "cuda", mu, raw, stream=eager_stream, **options))
        emulator.synchronize()
        for call in [*captured, *eager]:
            np.testing.assert_array_equal(call.kl, expected.kl)


@pytest.mark.parametrize(
    ("error", "earlier"),
    [(2, False), (9, False), (209, False), (701, False), (700, True), (710, True), (719, True)],
)
def test_an_error_of_an_earlier_kernel_is_told_from_one_of_the_launch(
    native: ModuleType, error: int, earlier: bool
) -> None:
    """2 is out of memory, 9 and 701 are invalid configurations, and 209 is missing machine code."""
    assert native.is_of_earlier_work(error) == earlier


def test_a_replay_reads_the_key_of_its_moment(native: ModuleType) -> None:
    sizes, dims = SHAPES["images"]
    mu, raw, *_ = inputs(native, sizes, "float32", "dense")
    state = np.array([1, 40], np.uint64)
    stream = native.emulator.Stream()
    native.emulator.begin_capture(stream)
    key = {"key": (0, 8), "key_pointers": state, "shift": 2}
    call = forward(native, "cuda", mu, raw, dims=dims, stream=stream, **key)
    graph = native.emulator.end_capture(stream)
    for seed, offset in ((1, 40), (9, 400)):
        state[:] = seed, offset
        graph.replay(stream)
        used = (seed, (offset + 8) >> 2)
        expected = forward(native, "cuda", mu, raw, dims=dims, key=used)
        np.testing.assert_array_equal(call.z, expected.z)
        assert call.key is not None and tuple(call.key) == used


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float16"])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_threads_do_not_race(case: Case, name: str, dtype: str) -> None:
    """The float16 kernels access memory as the bfloat16 kernels do.

    test_targets.py runs the same cases with AddressSanitizer.
    """
    result = case("tsan", name, dtype)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr
