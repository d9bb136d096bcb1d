// Pictures to rows of patches: Pillow's BICUBIC from any size to S x S, normalised, in the order in which the patch matmul reads.
//
//   lines[h,i,c]  = clip((2^21 + sum_j across[j,i] * source[h, first(i)+j, c]) >> 22)
//   pixel[o,i,c]  = clip((2^21 + sum_j down[j,o] * lines[first(o)+j, i, c]) >> 22), o and i of S
//   y[b*G*G + r*G + s, (c*P + u)*P + v] = (pixel[P*r+u, P*s+v, c]/255 - mean[c]) / std[c], and zeros behind a row's 3*P*P
//
//   y         (B*G*G, K)     bf16, S = G*P
//   lines     words, room for (ceil(H/4), 3, S) of each picture: the bytes of a pixel's colour in four neighbouring lines
//   source    bytes, (H, W, 3) of each picture, each from a multiple of 16 on
//   tables    i32, each from a multiple of 4 on: for a resize of n samples to S the first quad of each result (S), then (S, quads, 3)
//   pictures  (B, 8)  i32: source's first byte / 16, H, W, first line of `lines`, a multiple of 4; across: first element of its table, quads;
//             down: likewise
//
// A quad is four neighbouring samples from a multiple of 4 on. A weight has 24 bits: the three words of a quad are its weights' low, middle and high
// bytes, so that one dp4a adds four products with bytes, exactly; weights of samples that a result does not read are 0.
// Bits are those of src/image/resize.rs, which makes the tables: integers from there to the pixel, then one rounded f32 product and sum, which
// gives for each of the 256 bytes the bf16 of the formula with every step rounded.
//
// preprocess_across: gridDim == (ceil(most H / (kLines*groups)), ceil(S/columns), B), columns == blockDim.x/32 * kEach. A block makes `groups` times
// kLines x columns results. A line's quads come kChunk at a time: bytes as they stand in the source, 16 at a time; then a word for each colour of a quad. A lane is a line, a warp makes
// kEach columns: so lanes read words of their own banks at any scale, and weights are the warp's.
// preprocess_down: gridDim == (ceil(G/kPatches), ceil(G/rows), B), dynamic shared memory for kPatches rows of y, the weights of P results of
// kRing quads, and rows*P words. A lane is a column; a block goes down `rows` rows of patches and reads each quad once, as long as kRing quads are
// enough for one and for its results, else from L1 again and again.
// Requires S % 4 == 0, K % 8 == 0, a source that can be read up to a multiple of 16.
// Bytes: B*(3*H*W + 2*3*H*S + 2*G*G*K), the lines from L2 where they fit; weights, and what blocks share, from L2.

#include "common.cuh"
#include "mma.cuh"  // dp4a_u32_s32

constexpr int kBits = 22, kFields = 8;
constexpr int kWeights = 10;  // quads of a result whose weights are kept in shared memory; those of more are read from L1
constexpr int kLines = 32, kEach = 7, kAcross = 512;  // == ops::preprocess::{LINES, EACH}, and the most threads of a block
constexpr int kColumns = kAcross / 32 * kEach;
constexpr int kChunk = 44, kPieces = kChunk * 12 / 16 + 1;            // of a line: quads at a time; 16 bytes, wherever they begin in 16
constexpr int kPatches = 8, kRing = 16, kWide = 128, kDown = 256;    // == ops::preprocess::{PATCHES, RING, -, DOWN}

// The sums of products of bytes with the low, middle and high bytes of weights.
struct Sums {
    unsigned low = 0, middle = 0;
    int high = 0;

    __device__ __forceinline__ void add(unsigned bytes, const unsigned (&w)[3]) {
        low = __dp4a(bytes, w[0], low), middle = __dp4a(bytes, w[1], middle), high = dp4a_u32_s32(bytes, w[2], high);
    }
    __device__ __forceinline__ int sum() const { return int(low + (middle << 8) + (unsigned(high) << 16)); }
};

__device__ __forceinline__ int clip(int sum) { return min(max((sum + (1 << (kBits - 1))) >> kBits, 0), 255); }

extern "C" __global__ void __launch_bounds__(kAcross, 2)
preprocess_across(unsigned* lines, const uint8_t* source, const int* tables, const int* pictures, int S, int groups) {
    __shared__ union {
        uint4 pieces[kLines][kPieces];
        unsigned words[kLines][kPieces * 4], y[kLines / 4][3][128];  // columns of quad q in the order of column ^ 4*q: in banks of their own
        uint8_t bytes[kLines / 4][3][128][4];
    } s;
    __shared__ __align__(16) unsigned s_w[kColumns * kWeights * 3], s_x[3][kLines][kChunk + 1];
    __shared__ int s_picture[kFields], s_first[kColumns];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, threads = blockDim.x;
    const int column0 = blockIdx.y * (threads / 32 * kEach), columns = min(threads / 32 * kEach, S - column0);
    if (threadIdx.x < kFields) s_picture[threadIdx.x] = pictures[blockIdx.z * kFields + threadIdx.x];
    __syncthreads();
    const int H = s_picture[1], W = s_picture[2], quads = s_picture[5], top = blockIdx.x * kLines * groups;
    if (top >= H) return;
    const int* first = tables + s_picture[4];
    const unsigned* weights = reinterpret_cast<const unsigned*>(first + S) + size_t(column0) * quads * 3;
    if (int(threadIdx.x) < columns) s_first[threadIdx.x] = first[column0 + threadIdx.x];
    if (quads <= kWeights) {
        for (int e = threadIdx.x * 4; e < columns * quads * 3; e += threads * 4) store16(s_w + e, load16(weights + e));
        weights = s_w;
    }
    __syncthreads();
    const int end = min(s_first[columns - 1] + quads, (W + 3) / 4);
    const size_t size = size_t(H) * W * 3;
    const uint8_t* x = source + size_t(s_picture[0]) * 16;
    for (int line0 = top; line0 < min(H, top + kLines * groups); line0 += kLines) {
        auto at = [&](int l, int quad) { return (size_t(min(line0 + l, H - 1)) * W + size_t(quad) * 4) * 3; };
        int acc[kEach][3] = {};
        for (int from = s_first[0]; from < end; from += kChunk) {
            const int n = min(kChunk, end - from);
            __syncthreads();  // what was there has been used by all
            for (int e = threadIdx.x; e < kLines * kPieces; e += threads) {
                const int l = e / kPieces, piece = e % kPieces;
                const size_t byte = at(l, from);
                if (piece * 16 >= int(byte % 16) + n * 12 + 4) continue;  // a word more is read than is used
                const size_t here = byte / 16 * 16 + piece * 16;
                store16(&s.pieces[l][piece], here < size ? load16(x + here) : uint4{});
            }
            __syncthreads();
            for (int l = warp; l < kLines; l += threads / 32) {
                const int byte = at(l, from) % 16, bits = byte % 4 * 8;
                for (int i = lane; i < n; i += 32) {
                    const unsigned* w = &s.words[l][byte / 4 + i * 3];
                    const unsigned w1 = w[1], w2 = w[2];  // of r0 g0 b0 r1 | g1 b1 r2 g2 | b2 r3 g3 b3
                    const unsigned a = __funnelshift_r(w[0], w1, bits), b = __funnelshift_r(w1, w2, bits), c = __funnelshift_r(w2, w[3], bits);
                    s_x[0][l][i] = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
                    s_x[1][l][i] = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
                    s_x[2][l][i] = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
                }
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const int column = warp * kEach + i;
                if (column >= columns) break;
                const int begin = s_first[column], skipped = max(from - begin, 0), last = min(quads, from + n - begin);
                const unsigned* w = weights + (column * quads + skipped) * 3;
                const unsigned* q = &s_x[0][lane][begin + skipped - from];
                Sums sums[3];
#pragma unroll 1
                for (int k = skipped; k < last; ++k, w += 3, ++q) {
                    const unsigned v[3] = {w[0], w[1], w[2]};
#pragma unroll
                    for (int c = 0; c < 3; ++c) sums[c].add(q[c * kLines * (kChunk + 1)], v);
                }
#pragma unroll
                for (int c = 0; c < 3; ++c) acc[i][c] += sums[c].sum();
            }
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const int column = warp * kEach + i;
            if (column >= columns) break;
#pragma unroll
            for (int c = 0; c < 3; ++c) s.bytes[lane / 4][c][column ^ lane / 4 * 4][lane % 4] = clip(acc[i][c]);
        }
        __syncthreads();
        const int rows = min(kLines, H - line0 + 3) / 4 * 3;  // colours of quads
        unsigned* to = lines + size_t(s_picture[3] + line0) / 4 * 3 * S + column0;
        for (int r = warp; r < rows; r += threads / 32) {
            if (lane < columns / 4) store16(to + size_t(r) * S + lane * 4, load16(&s.y[r / 3][r % 3][lane * 4 ^ r / 3 * 4]));
        }
    }
}

extern "C" __global__ void __launch_bounds__(kDown, 4)
preprocess_down_bf16(bf16* y, const unsigned* lines, const int* tables, const int* pictures, int G, int P, int K, int rows) {
    constexpr int kWarps = kDown / 32, kBeside = kWide / 32;  // warps beside each other; the others make other lines
    constexpr float kMean[3] = {0.485f, 0.456f, 0.406f}, kStd[3] = {0.229f, 0.224f, 0.225f};
    extern __shared__ __align__(16) bf16 s_y[];  // (kPatches, K), then weights of P results, then first quads
    __shared__ __align__(16) unsigned s_x[kRing][3][kWide];
    __shared__ int s_picture[kFields];
    const int S = G * P, s0 = blockIdx.x * kPatches, patches = min(kPatches, G - s0), columns = patches * P;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r0 = blockIdx.y * rows, r1 = min(G, r0 + rows);
    unsigned* s_w = reinterpret_cast<unsigned*>(s_y + kPatches * K);
    int* s_first = reinterpret_cast<int*>(s_w + P * kRing * 3);
    if (threadIdx.x < kFields) s_picture[threadIdx.x] = pictures[blockIdx.z * kFields + threadIdx.x];
    for (int e = threadIdx.x * 8; e < kPatches * K; e += kDown * 8) store16(s_y + e, uint4{});
    __syncthreads();
    const int quads = s_picture[7], all = (s_picture[1] + 3) / 4;
    const int* first = tables + s_picture[6];
    const unsigned* x = lines + size_t(s_picture[3]) / 4 * 3 * S + s0 * P;
    for (int e = threadIdx.x; e < (r1 - r0) * P; e += kDown) s_first[e] = first[r0 * P + e];
    __syncthreads();
    int loaded = 0;
    for (int r = r0; r < r1; ++r, s_first += P) {
        const unsigned* weights = reinterpret_cast<const unsigned*>(first + S) + size_t(r) * P * quads * 3;
        const int begin = s_first[0], end = min(s_first[P - 1] + quads, all);
        // word(q, c, column): colour c of quad q; weight(u, q, i): word i of the weights of quad q of result u.
        auto make = [&](auto word, auto weight) {
            for (int u = warp / kBeside; u < P; u += kWarps / kBeside) {
                const int q0 = s_first[u], n = min(quads, all - q0);
                for (int column = warp % kBeside * 32 + lane; column < columns; column += kWide) {
                    Sums sums[3];
#pragma unroll 4
                    for (int q = 0; q < n; ++q) {
                        const unsigned w[3] = {weight(u, q, 0), weight(u, q, 1), weight(u, q, 2)};
#pragma unroll
                        for (int c = 0; c < 3; ++c) sums[c].add(word(q0 + q, c, column), w);
                    }
                    bf16* to = s_y + column / P * K + u * P + column % P;
#pragma unroll
                    for (int c = 0; c < 3; ++c) {
                        const float v = fmaf(clip(sums[c].sum()), float(1 / (255.0 * kStd[c])), float(-double(kMean[c]) / kStd[c]));
                        to[c * P * P] = __float2bfloat16_rn(v);
                    }
                }
            }
        };
        if (end - begin <= kRing && quads <= kRing && columns <= kWide) {
            loaded = max(loaded, begin);
            for (int i = loaded * 3 + warp; i < end * 3; i += kWarps) {
                if (lane < columns / 4) store16(&s_x[i / 3 % kRing][i % 3][lane * 4], load16(x + size_t(i) * S + lane * 4));
            }
            loaded = end;
            for (int e = threadIdx.x; e < P * quads * 3; e += kDown) s_w[e] = weights[e];
            __syncthreads();
            make([&](int q, int c, int column) { return s_x[q % kRing][c][column]; },
                 [&](int u, int q, int i) { return s_w[(u * quads + q) * 3 + i]; });
        } else {
            make([&](int q, int c, int column) { return x[(size_t(q) * 3 + c) * S + column]; },
                 [&](int u, int q, int i) { return weights[(size_t(u) * quads + q) * 3 + i]; });
        }
        __syncthreads();
        const size_t to = (size_t(blockIdx.z) * G + r) * G + s0;
        for (int e = threadIdx.x * 8; e < patches * K; e += kDown * 8) store16(y + to * K + e, load16(s_y + e));
        __syncthreads();
    }
}
