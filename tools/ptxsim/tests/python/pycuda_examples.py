"""PyCUDA programs as its documentation writes them; nothing in them knows of the simulator."""

import numpy as np
import pycuda.autoinit  # noqa: F401
import pycuda.driver as drv
import pycuda.gpuarray as gpuarray
from pycuda.compiler import SourceModule
from pycuda.elementwise import ElementwiseKernel
from pycuda.reduction import ReductionKernel

rng = np.random.default_rng(1)
print(drv.Context.get_device().name(), drv.mem_get_info())

mod = SourceModule("""
__global__ void multiply_them(float *dest, float *a, float *b)
{
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    dest[i] = a[i] * b[i];
}

#define TILE 16
__global__ void matmul(float *c, const float *a, const float *b, int m, int k, int n)
{
    __shared__ float s_a[TILE][TILE], s_b[TILE][TILE];
    const int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    float acc = 0.f;
    for (int t = 0; t < k; t += TILE) {
        s_a[threadIdx.y][threadIdx.x] = row < m && t + threadIdx.x < k ? a[row * k + t + threadIdx.x] : 0.f;
        s_b[threadIdx.y][threadIdx.x] = t + threadIdx.y < k && col < n ? b[(t + threadIdx.y) * n + col] : 0.f;
        __syncthreads();
        for (int j = 0; j < TILE; ++j) acc += s_a[threadIdx.y][j] * s_b[j][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = acc;
}

__constant__ float scale[4];
__global__ void scaled(float *y) { y[threadIdx.x] *= scale[threadIdx.x % 4]; }
""")

a, b = rng.random(400, dtype=np.float32), rng.random(400, dtype=np.float32)
dest = np.zeros_like(a)
mod.get_function("multiply_them")(drv.Out(dest), drv.In(a), drv.In(b), block=(100, 1, 1), grid=(4, 1))
assert (dest == a * b).all()
print("vector product: right")

m, k, n = 50, 37, 21
A, B = rng.random((m, k), dtype=np.float32), rng.random((k, n), dtype=np.float32)
C = np.empty((m, n), dtype=np.float32)
mod.get_function("matmul")(
    drv.Out(C), drv.In(A), drv.In(B), np.int32(m), np.int32(k), np.int32(n),
    block=(16, 16, 1), grid=((n + 15) // 16, (m + 15) // 16),
)
np.testing.assert_allclose(C, A @ B, rtol=1e-5)
print("matmul in shared memory: right")

address, size = mod.get_global("scale")
drv.memcpy_htod(address, np.array([1, 2, 3, 4], dtype=np.float32))
y = np.ones(32, dtype=np.float32)
mod.get_function("scaled")(drv.InOut(y), block=(32, 1, 1))
assert size == 16 and (y == np.tile([1, 2, 3, 4], 8)).all()
print("constant memory: right")

x = gpuarray.to_gpu(a)
np.testing.assert_allclose((2 * x + 1).get(), 2 * a + 1, rtol=1e-6)
np.testing.assert_allclose(gpuarray.sum(x).get(), a.sum(dtype=np.float64), rtol=1e-5)
dot = ReductionKernel(np.float32, neutral="0", reduce_expr="a+b", map_expr="x[i]*y[i]", arguments="float *x, float *y")
np.testing.assert_allclose(dot(x, gpuarray.to_gpu(b)).get(), a.astype(np.float64) @ b, rtol=1e-5)
axpy = ElementwiseKernel("float a, float *x, float *y, float *z", "z[i] = a*x[i] + y[i]", "axpy")
z = gpuarray.empty_like(x)
axpy(np.float32(3), x, gpuarray.to_gpu(b), z)
np.testing.assert_allclose(z.get(), 3 * a + b, rtol=1e-6)
print("reductions and elementwise kernels: right")

stream, start, end = drv.Stream(), drv.Event(), drv.Event()
pinned = drv.pagelocked_empty(400, np.float32)
pinned[:] = a
buffer = drv.mem_alloc(pinned.nbytes)
start.record(stream)
drv.memcpy_htod_async(buffer, pinned, stream)
mod.get_function("multiply_them")(buffer, buffer, buffer, block=(100, 1, 1), grid=(4, 1), stream=stream)
drv.memcpy_dtoh_async(pinned, buffer, stream)
end.record(stream)
stream.synchronize()
assert (pinned == a * a).all() and start.time_till(end) >= 0
print("streams, events and page-locked memory: right")
print("pycuda: 5 passed, 0 failed")
