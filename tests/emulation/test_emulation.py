"""The emulation catches what would go wrong on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from spa.kernels import backend
from tests.emulation import ORDERS, DeviceArray, EmulatedModule, KernelError, emulated_cupy

REVERSE = """
extern "C" __global__ void reverse(const float* x, float* y)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    %s
    y[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];
}
"""


def launched(code, name, *arrays, order="forward", block=64, grid=1, shared_mem=0):
    with emulated_cupy(order) as cupy:
        device = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
        EmulatedModule(code).get_function(name)((grid,), (block,), device, shared_mem=shared_mem)
        return [d.host for d in device if isinstance(d, DeviceArray)]


@pytest.mark.parametrize(("barrier", "right"), [("__syncthreads();", True), ("", False)])
def test_a_missing_barrier_shows_in_some_order(barrier, right):
    x = np.arange(128, dtype=np.float32)
    want = x.reshape(2, 64)[:, ::-1].ravel()
    results = [launched(REVERSE % barrier, "reverse", x, 0 * x - 1, order=order, grid=2)[1] for order in ORDERS]
    assert all(np.array_equal(result, want) for result in results) == right


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "if (threadIdx.x < 16) __shfl_sync(0xffffffffu, 1.f, 0); else if (threadIdx.x < 32) __syncthreads();",
            "deadlock",
        ),
        ("if (threadIdx.x & 1) __syncthreads();\nelse __syncthreads();", "different barriers"),
        ("if (threadIdx.x == 5) __shfl_sync(1u, 1.f, 0);", "mask does not name"),
    ],
)
def test_threads_that_diverge_are_reported(body, message):
    code = f'extern "C" __global__ void k(float* x) {{ {body}\n x[0] = 1.f; }}'
    with pytest.raises(KernelError, match=message):
        launched(code, "k", np.zeros(1, np.float32), block=32)


@pytest.mark.parametrize("order", ORDERS)
def test_warp_operations(order):
    code = """
extern "C" __global__ void k(float* sums, unsigned* bits)
{
    float v = threadIdx.x;
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_down_sync(0xffffffffu, v, d);
    const unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = v;
        bits[threadIdx.x / 32] = odd;
    }
}
"""
    sums, bits = launched(code, "k", np.zeros(2, np.float32), np.zeros(2, np.uint32), order=order)
    assert sums.tolist() == [sum(range(32)), sum(range(32, 64))]
    assert bits.tolist() == [0xAAAAAAAA] * 2


def test_dynamic_shared_memory_starts_as_nan():
    code = """
extern "C" __global__ void k(float* x)
{
    extern __shared__ float s[];
    x[threadIdx.x] = s[threadIdx.x];
}
"""
    (x,) = launched(code, "k", np.zeros(64, np.float32), shared_mem=256)
    assert np.isnan(x).all()


def test_a_warp_that_overtakes_another_shows_in_some_order():
    """Without the barrier at the end of the loop, a fast warp overwrites what a slow one still has to read."""
    code = """
extern "C" __global__ void k(float* x)
{
    __shared__ float s[2];
    for (int i = 0; i < 4; i++) {
        const float v = __shfl_sync(0xffffffffu, (float)i, 0);
        if (threadIdx.x %% 32 == 0)
            s[threadIdx.x / 32] = v;
        __syncthreads();
        x[i * 64 + threadIdx.x] = s[0] + s[1];
        %s
    }
}
"""
    want = np.repeat(2 * np.arange(4), 64)
    for barrier, right in (("__syncthreads();", True), ("", False)):
        zeros = np.zeros(256, np.float32)
        results = [launched(code % barrier, "k", zeros, order=order)[0] for order in ORDERS]
        assert all(np.array_equal(result, want) for result in results) == right


@pytest.mark.parametrize("index", [-1, 64])
def test_writing_outside_an_array_is_reported(index):
    code = f'extern "C" __global__ void k(float* x) {{ if (threadIdx.x == 0) x[{index}] = 0.f; }}'
    with pytest.raises(KernelError, match="outside"):
        launched(code, "k", np.zeros(64, np.float32))


def test_kernel_arguments_must_fit_the_signature():
    code = 'extern "C" __global__ void k(float* x, int n) { x[0] = n; }'
    x = np.zeros(2, np.float32)
    for wrong in [(x,), (x, 3), (x, np.float32(3)), (x, np.int64(3)), (x, x), (np.int32(1), np.int32(1))]:
        with pytest.raises(TypeError):
            launched(code, "k", *wrong)
    (got,) = launched(code, "k", x, np.int32(3))
    assert got[0] == 3


def test_device_arrays_do_not_mix_with_host_arrays():
    host = np.ones(3, np.float32)
    with emulated_cupy() as cupy:
        device = cupy.asarray(host)
        mixtures = (
            lambda: device + host,
            lambda: host * device,
            lambda: cupy.add(host, device),
            lambda: cupy.sum(host),
            lambda: np.asarray(device),
            lambda: np.concatenate([host, device]),
            lambda: device[np.array([0, 1])],
            lambda: device.__setitem__(slice(None), host),
            lambda: device.__iadd__(host),
        )
        for mixture in mixtures:
            with pytest.raises(TypeError):
                mixture()
        assert isinstance(device * np.float32(2) + 1, DeviceArray)
        assert isinstance(np.sqrt(device), DeviceArray)
        assert isinstance(device.sum(), DeviceArray)
        assert float(device.sum()) == 3
        assert type(backend.to_host(device)) is np.ndarray
        with pytest.raises(AttributeError, match="CuPy has no"):
            cupy.geomspace(1, 2, 3)


def test_the_stand_in_leaves_when_its_context_ends():
    before = backend.cupy
    with emulated_cupy() as cupy:
        assert backend.gpu_available()
        assert backend.xp_of(cupy.zeros(2)) is cupy
    assert backend.cupy is before
