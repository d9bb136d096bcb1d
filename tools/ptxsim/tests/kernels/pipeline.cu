// Sums of the rows of a matrix, by a persistent kernel of producers and consumers.
//
//   y[r] = sum_c x[r,c]
//
//   y (R) f32; x (R, kCols) f32, 16-byte aligned; ticket (1) u32, zero before the launch
//   any grid of kBlock threads
//
// Warp 0 takes rows by an atomic ticket and fetches them, 16 bytes a lane and copy, into a ring of kSlots rows; the other
// warps add them up, the row in slot s done by warp 1 + s % kConsumers. `full[s]` completes when the 32 lanes' copies
// have landed and the row's number, which R ends the work, has been written: the arrival of a copy alone would not
// release an ordinary store. `empty[s]` completes when the consumer's 32 lanes have read.

#include "ptx.cuh"

constexpr int kConsumers = 3, kBlock = 32 * (1 + kConsumers), kSlots = 6, kCols = 512;

extern "C" __global__ void __launch_bounds__(kBlock) row_sums(float* y, const float* x, int R, unsigned* ticket) {
    __shared__ alignas(16) float s_row[kSlots][kCols];
    __shared__ int s_number[kSlots];
    __shared__ uint64_t s_full[kSlots], s_empty[kSlots];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0)
        for (int s = 0; s < kSlots; ++s) {
            mbarrier_init(&s_full[s], 33);
            mbarrier_init(&s_empty[s], 32);
        }
    __syncthreads();

    if (warp == 0) {
        int finished = 0;  // consumers that have been told to end
        for (int n = 0; finished < kConsumers; ++n) {
            const int slot = n % kSlots, round = n / kSlots;
            mbarrier_wait(&s_empty[slot], (round & 1) ^ 1);  // a new barrier's phase of parity 1 counts as completed
            int row = 0;
            if (lane == 0) row = min(int(atomicAdd(ticket, 1)), R);
            row = __shfl_sync(0xffffffff, row, 0);
            if (lane == 0) {
                s_number[slot] = row;
                mbarrier_arrive(&s_full[slot]);
            }
            if (row < R) {
#pragma unroll
                for (int c = 0; c < kCols; c += 128) cp_async16(smem(&s_row[slot][c + lane * 4]), x + size_t(row) * kCols + c + lane * 4);
            } else {
                ++finished;
            }
            cp_async_mbarrier_arrive_noinc(&s_full[slot]);
        }
    } else {
        for (int n = warp - 1;; n += kConsumers) {
            const int slot = n % kSlots, round = n / kSlots;
            mbarrier_wait(&s_full[slot], round & 1);
            const int row = s_number[slot];
            if (row >= R) break;
            float sum = 0.f;
            for (int c = lane; c < kCols; c += 32) sum += s_row[slot][c];
            mbarrier_arrive(&s_empty[slot]);
            for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
            if (lane == 0) y[row] = sum;
        }
    }
}
