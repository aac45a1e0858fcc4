// Sums over the rows of a matrix, in two steps whose order depends on the sizes alone: slices of rows, then their sums.
//
// column_sums: partial (slices, o) = sums over each slice of rows of x (n, o).
// sum_partials: first, second, third (c), as far as there are such sums and each where it is wanted, += the sums over
//   partial (num_partials, 1 to 3 kinds, c).
#include "common.cuh"

template <class T>
__device__ __forceinline__ void column_sums(float* partial, const T* x, int n, int o) {
    Walk at = find_walk(n, o);
    Eight sums{};
    for (int row = at.row; row < at.end; row += ROW_THREADS) {
        add8(sums, load8(x + static_cast<size_t>(row) * o + at.column, at.left));
    }
    store_slice(partial, sums, at, o);
}

extern "C" __global__ void column_sums_f32(float* partial, const float* x, int n, int o) { column_sums(partial, x, n, o); }
EXPORT(column_sums_f32)

extern "C" __global__ void column_sums_bf16(float* partial, const bf16* x, int n, int o) { column_sums(partial, x, n, o); }
EXPORT(column_sums_bf16)

// Blocks of 32 columns x 8 threads, each of which adds up every eighth partial; in y for the kinds of sums.
extern "C" __global__ void sum_partials(float* first, float* second, float* third, const float* partial,
                                        int num_partials, int c) {
    float* out = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    if (!out) return;
    int column = blockIdx.x * COLUMN_THREADS + threadIdx.x % COLUMN_THREADS;
    int thread = threadIdx.x / COLUMN_THREADS;
    float sum = 0.0f;
    if (column < c) {
        const float* start = partial + static_cast<size_t>(blockIdx.y) * c + column;
        size_t stride = static_cast<size_t>(gridDim.y) * c;
        for (int p = thread; p < num_partials; p += ROW_THREADS) sum += start[p * stride];
    }
    Shared<float> all = shared<float>(0, ROW_THREADS * COLUMN_THREADS);
    all[threadIdx.x] = sum;
    __syncthreads();
    if (thread == 0 && column < c) {
        for (int i = 1; i < ROW_THREADS; ++i) sum += all[i * COLUMN_THREADS + threadIdx.x];
        out[column] += sum;
    }
}
EXPORT(sum_partials)
