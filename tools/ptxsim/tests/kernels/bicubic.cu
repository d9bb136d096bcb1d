// Bicubic resize of an image, Keys' kernel with a = -0.75, pixel centres at half, edges repeated.
//
//   y[c,i,j] = sum_{u,v in -1..2} k(u - fi) * k(v - fj) * x[i0 + u, j0 + v, c] / 255
//   i0 + fi = (i + 0.5) * H / OH - 0.5,  j0 + fj = (j + 0.5) * W / OW - 0.5
//
//   y (3, OH, OW) f32; x (H, W, 3) u8; gridDim = (ceil(OW / 32), ceil(OH / 8)), blocks of (32, 8)
//
// A thread does one pixel of all three channels. The weights of the four taps sit in an array indexed at run time, which
// keeps them in local memory: this kernel is a test of that too.

constexpr int kBlockX = 32, kBlockY = 8;

__device__ void weights(float (&w)[4], float f) {
    const float a = -0.75f;
    for (int i = 0; i < 4; ++i) {
        const float d = fabsf(float(i - 1) - f);
        w[i] = d <= 1.f ? ((a + 2.f) * d - (a + 3.f)) * d * d + 1.f : ((a * d - 5.f * a) * d + 8.f * a) * d - 4.f * a;
    }
}

extern "C" __global__ void __launch_bounds__(kBlockX * kBlockY)
bicubic_u8(float* y, const unsigned char* x, int H, int W, int OH, int OW) {
    const int j = blockIdx.x * kBlockX + threadIdx.x, i = blockIdx.y * kBlockY + threadIdx.y;
    if (i >= OH || j >= OW) return;
    const float si = (i + 0.5f) * H / OH - 0.5f, sj = (j + 0.5f) * W / OW - 0.5f;
    const int i0 = int(floorf(si)), j0 = int(floorf(sj));
    float wi[4], wj[4], acc[3] = {};
    weights(wi, si - i0);
    weights(wj, sj - j0);
#pragma unroll 1
    for (int u = 0; u < 4; ++u)
#pragma unroll 1
        for (int v = 0; v < 4; ++v) {
            const int r = min(max(i0 + u - 1, 0), H - 1), c = min(max(j0 + v - 1, 0), W - 1);
            const unsigned char* px = x + (size_t(r) * W + c) * 3;
            for (int ch = 0; ch < 3; ++ch) acc[ch] += wi[u] * wj[v] * px[ch];
        }
    for (int ch = 0; ch < 3; ++ch) y[(size_t(ch) * OH + i) * OW + j] = acc[ch] * (1.f / 255.f);
}
