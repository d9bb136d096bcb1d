// The next token of each sequence, greedy or drawn by temperature, top-k and top-p.
//
//   token   (B)                i32
//   logits  (B, V)             f32
//   knobs   (B, 3)             f32: temperature (greedy unless above 0), top-p (none unless below 1), repetition penalty (1: none)
//   draws   (B, 4)             i32: top-k (none unless above 0), seed (low, high word), counter
//   seen    (B, ceil(V/32))    i32: bit i%32 of word i/32 says that token i is in the text; the chosen token's is set
//
// What is computed stands in reference/sample.rs, step by step; the results are equal. For that, a token's weight is a whole number:
// floor(2^40 exp(x)), exp by a polynomial whose products and sums are rounded one by one; sums of weights are exact in any order.
//
// Requires gridDim.x == B, V <= 2^22. One block a sequence. A logit is compared as `key`, an integer in the same order. The smallest key that
// top-k (or top-p) keeps is found by its digits, 11, 11 and 10 bits, from a histogram of counts (or weights) each. Keys that cannot
// matter are left out of the histograms: below the k-th largest of the threads' own largest; of so little weight that all like it are less than what top-p drops.
// Greedy reads the row once, drawing 2 to 9 times: once from memory, then from L2 (V = 92553: 370 KB). Bytes: 4*B*V.

#include "common.cuh"

constexpr int kBlock = 1024;  // == ops::sample::BLOCK
constexpr int kWarps = kBlock / 32, kBins = 2 * kBlock;

using u64 = unsigned long long;

// Integers in the order of the floats that are not NaN.
__device__ __forceinline__ uint32_t key_of(float v) {
    const uint32_t bits = __float_as_uint(v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// floor(2^40 exp(x)) for x <= 0; 0 for NaN.
__device__ __forceinline__ u64 weight_of(float x) {
    constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
    const float y = __fmul_rn(x, 1.44269504f);
    if (!(y > -41.f)) return 0;
    const float n = __fadd_rn(__fadd_rn(y, kRound), -kRound), f = __fadd_rn(y, -n);
    constexpr float kFactors[] = {1.3333558e-3f, 9.618129e-3f, 5.550411e-2f, 2.402265e-1f, 6.931472e-1f, 1.f};
    float p = 1.540353e-4f;
#pragma unroll
    for (float factor : kFactors) p = __fadd_rn(__fmul_rn(p, f), factor);
    return __float2ull_rz(__fmul_rn(p, __int_as_float((int(n) + 40 + 127) << 23)));
}

// Philox4x32-10: the first two words for the counter (counter, 0, 0, 0).
__device__ __forceinline__ u64 random(uint32_t low, uint32_t high, uint32_t counter) {
    uint32_t c[4] = {counter, 0, 0, 0};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 a = u64(c[0]) * 0xd2511f53u, b = u64(c[2]) * 0xcd9e8d57u;
        c[0] = uint32_t(b >> 32) ^ c[1] ^ low, c[2] = uint32_t(a >> 32) ^ c[3] ^ high;
        c[1] = uint32_t(b), c[3] = uint32_t(a);
        low += 0x9e3779b9u, high += 0xbb67ae85u;
    }
    return u64(c[1]) << 32 | c[0];
}

struct Row {
    const float* logits;
    const int* seen;
    int V;
    float penalty;

    __device__ __forceinline__ uint32_t key(int i) const {
        float l = logits[i];
        if (penalty != 1.f && seen[i / 32] >> i % 32 & 1) l = l > 0.f ? __fdiv_rn(l, penalty) : __fmul_rn(l, penalty);
        return key_of(l != l ? -INFINITY : __fadd_rn(l, 0.f));  // one zero
    }
};

// The sum of v over the threads up to and including this one; the sum of all in `total`. A barrier before s_sums is used again.
__device__ __forceinline__ u64 block_scan(u64 v, u64* s_sums, u64& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const u64 other = __shfl_up_sync(0xffffffff, v, d);
        if (lane >= d) v += other;
    }
    if (lane == 31) s_sums[warp] = v;
    __syncthreads();
    u64 before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = total;
        total += s_sums[w];
    }
    __syncthreads();
    return before + v;
}

// The largest key such that those from it on measure `target` or more, which all together do; keys below `floor` measure nothing.
template <class Measure>
__device__ __forceinline__ uint32_t select(const Row& row, uint32_t floor, u64 target, u64* s_bins, u64* s_sums, Measure measure) {
    __shared__ uint32_t s_digit;
    __shared__ u64 s_above;
    uint32_t found = 0;
    for (int shift = 21, bits = 11; bits > 0; bits = shift < 11 ? shift : 11, shift -= bits) {
        for (int i = threadIdx.x; i < kBins; i += kBlock) s_bins[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.V; i += kBlock) {
            const uint32_t key = row.key(i);
            if (key < floor || u64(key ^ found) >> (shift + bits) != 0) continue;
            const u64 m = measure(key);
            if (m) atomicAdd(s_bins + (key >> shift & ((1u << bits) - 1)), m);
        }
        __syncthreads();
        // From the largest digit down, two bins a thread.
        const int top = (1 << bits) - 1, bin = top - 2 * threadIdx.x;
        const u64 a = bin >= 0 ? s_bins[bin] : 0, b = bin >= 1 ? s_bins[bin - 1] : 0;
        u64 total;
        const u64 through = block_scan(a + b, s_sums, total), before = through - a - b;
        if (before < target && target <= through) {
            const bool second = before + a < target;
            s_digit = bin - second;
            s_above = before + (second ? a : 0);
        }
        __syncthreads();
        found |= s_digit << shift;
        target -= s_above;
    }
    return found;
}

extern "C" __global__ void __launch_bounds__(kBlock, 1)
sample_f32(int* token, const float* logits, const float* knobs, const int* draws, int* seen, int V) {
    __shared__ u64 s_bins[kBins], s_sums[kWarps];
    __shared__ uint32_t s_keys[kWarps];
    __shared__ int s_at[kWarps], s_chosen;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    knobs += blockIdx.x * 3, draws += blockIdx.x * 4;
    int* const row_seen = seen + size_t(blockIdx.x) * ((V + 31) / 32);
    const Row row = {logits + size_t(blockIdx.x) * V, row_seen, V, knobs[2]};
    const float temperature = knobs[0], top_p = knobs[1];
    const int top_k = draws[0];

    // The largest, the first of equal ones.
    uint32_t best = 0;
    int at = V;
    for (int i = threadIdx.x; i < V; i += kBlock) {
        const uint32_t key = row.key(i);
        if (key > best) best = key, at = i;
    }
    const uint32_t own = best;
    best = __reduce_max_sync(0xffffffff, own);
    at = __reduce_min_sync(0xffffffff, own == best ? at : V);
    if (lane == 0) s_keys[warp] = best, s_at[warp] = at;
    __syncthreads();
    best = __reduce_max_sync(0xffffffff, s_keys[lane]);
    at = __reduce_min_sync(0xffffffff, s_keys[lane] == best ? s_at[lane] : V);
    const float largest = value_of(best);

    if (!(temperature > 0.f) || isinf(largest)) {
        if (threadIdx.x == 0) {
            if (largest == -INFINITY) at = 0;
            token[blockIdx.x] = at;
            row_seen[at / 32] |= 1 << at % 32;
        }
        return;
    }
    auto weight = [&](uint32_t key) { return weight_of(__fdiv_rn(__fadd_rn(value_of(key), -largest), temperature)); };

    uint32_t floor = 0;  // keys from here on are kept
    if (top_k > 0 && top_k < V) {
        uint32_t bound = 0;  // top_k threads have a key that is no smaller
        for (int bit = 31; bit >= 0 && top_k <= kBlock; --bit) {
            if (__syncthreads_count(own >= (bound | 1u << bit)) >= top_k) bound |= 1u << bit;
        }
        floor = select(row, bound, top_k, s_bins, s_sums, [](uint32_t) { return 1; });
    }
    // A warp has a piece of the row of whole words of `seen`; the weights of what is kept there, in s_sums.
    const int piece = (V + 32 * kWarps - 1) / (32 * kWarps) * 32, begin = warp * piece, end = min(begin + piece, V);
    auto kept = [&](int i) {
        const uint32_t key = row.key(i);
        return key >= floor ? weight(key) : 0;
    };
    auto weigh = [&]() {
        u64 sum = 0;
        for (int i = begin + lane; i < end; i += 32) sum += kept(i);
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
        __syncthreads();
        if (lane == 0) s_sums[warp] = sum;
        __syncthreads();
        u64 total = 0;
        for (int w = 0; w < kWarps; ++w) total += s_sums[w];
        return total;
    };
    u64 total = weigh();
    if (top_p < 1.f) {
        const u64 p = __float2ull_rz(__fmul_rn(fmaxf(top_p, 0.f), 16777216.f));  // in steps of 2^-24
        const u64 share = (total >> 24) * p + ((total & 0xffffff) * p >> 24), target = share > 1 ? share : 1;
        const u64 light = (total - target) / (2 * u64(V));  // all tokens up to this weight together are half of what is dropped at most
        __syncthreads();
        floor = select(row, floor, target, s_bins, s_sums, [&](uint32_t key) {
            const u64 w = weight(key);
            return w > light ? w : 0;
        });
        total = weigh();
    }

    // The piece, and the token in it, at which the running sum passes a random part of the whole.
    u64 left = __umul64hi(random(draws[1], draws[2], draws[3]), total);
    int w = 0;
    for (; left >= s_sums[w]; ++w) left -= s_sums[w];
    if (w == warp) {
        for (int i = begin;; i += 32) {
            u64 sum = i + lane < end ? kept(i + lane) : 0;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const u64 other = __shfl_up_sync(0xffffffff, sum, d);
                if (lane >= d) sum += other;
            }
            const unsigned past = __ballot_sync(0xffffffff, sum > left);
            if (past) {
                if (lane == 0) s_chosen = i + __ffs(past) - 1;
                break;
            }
            left -= __shfl_sync(0xffffffff, sum, 31);
        }
    }
    __syncthreads();  // all have read what is seen
    if (threadIdx.x == 0) {
        token[blockIdx.x] = s_chosen;
        row_seen[s_chosen / 32] |= 1 << s_chosen % 32;
    }
}
