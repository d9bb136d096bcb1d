"""Numba programs as its documentation writes them; nothing in them knows of the simulator."""

import math
import os

import numpy as np
from numba import cuda, float32


@cuda.jit
def vector_add(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = a[i] + b[i]


TPB = 16


@cuda.jit
def fast_matmul(A, B, C):
    """Tiles of A and B go through shared memory."""
    sA = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    sB = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    x, y = cuda.grid(2)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    tmp = float32(0.0)
    for i in range((A.shape[1] + TPB - 1) // TPB):
        sA[ty, tx] = 0
        sB[ty, tx] = 0
        if y < A.shape[0] and tx + i * TPB < A.shape[1]:
            sA[ty, tx] = A[y, tx + i * TPB]
        if x < B.shape[1] and ty + i * TPB < B.shape[0]:
            sB[ty, tx] = B[ty + i * TPB, x]
        cuda.syncthreads()
        for j in range(TPB):
            tmp += sA[ty, j] * sB[j, tx]
        cuda.syncthreads()
    if y < C.shape[0] and x < C.shape[1]:
        C[y, x] = tmp


@cuda.jit
def block_sums(x, total):
    """A tree in shared memory, then one atomic a block."""
    s = cuda.shared.array(256, dtype=float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    s[t] = x[i] if i < x.size else 0
    cuda.syncthreads()
    step = 128
    while step > 0:
        if t < step:
            s[t] += s[t + step]
        cuda.syncthreads()
        step //= 2
    if t == 0:
        cuda.atomic.add(total, 0, s[0])


@cuda.jit(device=True)
def polar(re, im):
    return math.sqrt(re * re + im * im), math.atan2(im, re)


@cuda.jit
def to_polar(z, r, phi):
    i = cuda.grid(1)
    if i < z.size:
        r[i], phi[i] = polar(z[i].real, z[i].imag)


@cuda.reduce
def sum_reduce(a, b):
    return a + b


@cuda.jit
def out_of_bounds(x):
    x[x.size + cuda.threadIdx.x] = 1


def main():
    rng = np.random.default_rng(1)
    print(cuda.get_current_device().name, cuda.current_context().get_memory_info())

    a, b = rng.random(10_000, dtype=np.float32), rng.random(10_000, dtype=np.float32)
    c = np.zeros_like(a)
    vector_add[math.ceil(a.size / 128), 128](a, b, c)
    assert (c == a + b).all()
    print("vector add: right")

    m, k, n = 70, 45, 33
    A, B = rng.random((m, k), dtype=np.float32), rng.random((k, n), dtype=np.float32)
    C = cuda.device_array((m, n), dtype=np.float32)
    grid = (math.ceil(n / TPB), math.ceil(m / TPB))
    fast_matmul[grid, (TPB, TPB)](cuda.to_device(A), cuda.to_device(B), C)
    np.testing.assert_allclose(C.copy_to_host(), A @ B, rtol=1e-5)
    print("matmul in shared memory: right")

    total = np.zeros(1, dtype=np.float32)
    block_sums[math.ceil(a.size / 256), 256](a, total)
    np.testing.assert_allclose(total[0], a.sum(dtype=np.float64), rtol=1e-5)
    print("reduction: right")

    for n in (1, 33, 128, 1234, 100_000):
        x = np.arange(n, dtype=np.float64)
        assert sum_reduce(x) == x.sum() and sum_reduce(x, init=5.0) == x.sum() + 5, n
    print("@cuda.reduce: right")

    z = rng.random(500) + 1j * rng.random(500)
    r, phi = np.zeros(500), np.zeros(500)
    to_polar[4, 128](z, r, phi)
    np.testing.assert_allclose(r, np.abs(z), rtol=1e-14)
    np.testing.assert_allclose(phi, np.angle(z), rtol=1e-13)
    print("device functions and double precision: right")

    stream = cuda.stream()
    start, end = cuda.event(), cuda.event()
    with cuda.pinned(a):
        start.record(stream)
        da, db = cuda.to_device(a, stream), cuda.to_device(b, stream)
        dc = cuda.device_array_like(a, stream)
        vector_add[math.ceil(a.size / 128), 128, stream](da, db, dc)
        end.record(stream)
        dc.copy_to_host(c, stream)
        stream.synchronize()
    assert (c == a + b).all() and start.elapsed_time(end) >= 0
    mapped = cuda.mapped_array(64, dtype=np.float32)
    mapped[:] = 2
    managed = cuda.managed_array(64, dtype=np.float32)
    managed[:] = 3
    vector_add[1, 64](mapped, managed, mapped)
    cuda.synchronize()
    assert (mapped == 5).all()
    print("streams, events, pinned, mapped and managed memory: right")

    small = cuda.to_device(np.zeros(32, dtype=np.float32))
    try:
        out_of_bounds[1, 32](small)
        cuda.synchronize()
    except cuda.cudadrv.driver.CudaAPIError as e:
        assert "ILLEGAL_ADDRESS" in str(e), e
        print("a store out of bounds: CUDA_ERROR_ILLEGAL_ADDRESS")
    else:
        raise AssertionError("a store out of bounds went unseen")
    print("numba: 7 passed, 0 failed", flush=True)
    # Its context is dead: freeing what is in it would fail, as on a GPU.
    os._exit(0)


main()
