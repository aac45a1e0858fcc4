// Kernels with mistakes, one each, which the emulator must find (`gpu/emulator/tests.rs`); the program carries none of them.
#include "../common.cuh"

extern "C" __global__ void threads_end_before_a_barrier() {
    if (threadIdx.x < 32) __syncthreads();
}
EXPORT(threads_end_before_a_barrier)

extern "C" __global__ void threads_wait_at_two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
EXPORT(threads_wait_at_two_barriers)

extern "C" __global__ void lanes_take_two_ways() {
    if (lane_index() < 7) {
        warp_barrier();
    } else {
        warp_sum(1.0f);
    }
}
EXPORT(lanes_take_two_ways)

extern "C" __global__ void a_lane_is_missing() {
    if (lane_index() == 7) return;
    votes(true);
}
EXPORT(a_lane_is_missing)

extern "C" __global__ void sixteen_bytes_are_misaligned(float* y) { store16(y + threadIdx.x, load16(y)); }
EXPORT(sixteen_bytes_are_misaligned)

// `wrong` is the index of the mistake: behind the part, behind the launch's memory, or past all checks.
extern "C" __global__ void shared_memory_is_too_small(int wrong) {
    int i = threadIdx.x;
    if (wrong == 0) shared<float>(0, 31)[i] = 1.0f;
    if (wrong == 1) shared<float>(4, 32)[i] = 1.0f;
    if (wrong == 2) *reinterpret_cast<volatile float*>(shared_memory() + 4 * (i + 1)) = 1.0f;
    if (wrong == 3) copy16_async(shared_memory() + 16 * i, nullptr, 0);
    if (wrong == 4) shared<float>(0, 32)[i - 1] = 1.0f;
}
EXPORT(shared_memory_is_too_small)

// Each thread copies four bytes of x to shared memory and from there to y: where `waits` is 0, before they have come.
extern "C" __global__ void copies_are_waited_for(float* y, const float* x, int waits) {
    Shared<float> tile = shared<float>(0, blockDim.x);
    copy4_async(&tile[threadIdx.x], x + threadIdx.x, true);
    copies_commit();
    if (waits) copies_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(copies_are_waited_for)

// y is x in reverse, by way of shared memory: where `waits` is 0, without the barrier.
extern "C" __global__ void threads_wait_for_each_other(float* y, const float* x, int waits) {
    Shared<float> tile = shared<float>(0, blockDim.x);
    tile[threadIdx.x] = x[threadIdx.x];
    if (waits) __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
EXPORT(threads_wait_for_each_other)

// For AddressSanitizer: y[0] = x[index], or the byte of shared memory there.
extern "C" __global__ void memory_is_read_at(float* y, const float* x, int index, int is_shared) {
    y[0] = is_shared ? static_cast<float>(*static_cast<volatile char*>(shared_memory() + index)) : x[index];
}
EXPORT(memory_is_read_at)
