// Sums over the rows of a matrix, in two steps whose order depends on the sizes alone: slices of rows, then their sums.
//
// column_sums: partial (slices, o) = sums over each slice of rows of x (n, o).
// sum_partials: out (c) += the sum over p of partial (num_partials, stride), of which the first c columns count.
#include "common.cuh"

constexpr int COLUMN_THREADS = 32, ROW_THREADS = 8;

// Blocks in x: 256 columns each; in y: slices of rows.
template <class T>
__device__ __forceinline__ void column_sums(float* partial, const T* x, int n, int o) {
    int column = (blockIdx.x * COLUMN_THREADS + threadIdx.x % COLUMN_THREADS) * 8;
    int first = threadIdx.x / COLUMN_THREADS;
    int rows_per_slice = (n + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y);
    int start = blockIdx.y * rows_per_slice;
    int end = start + rows_per_slice < n ? start + rows_per_slice : n;
    Eight sums{};
    if (column < o) {
        for (int row = start + first; row < end; row += ROW_THREADS) {
            Eight values = load8(x + static_cast<size_t>(row) * o + column, o - column);
#pragma unroll
            for (int j = 0; j < 8; ++j) sums.x[j] += values.x[j];
        }
    }
    Shared<float> all = shared<float>(0, ROW_THREADS * COLUMN_THREADS * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) all[threadIdx.x * 8 + j] = sums.x[j];
    __syncthreads();
    if (first == 0 && column < o) {
        for (int i = 1; i < ROW_THREADS; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sums.x[j] += all[(i * COLUMN_THREADS + threadIdx.x) * 8 + j];
        }
        store8(partial + static_cast<size_t>(blockIdx.y) * o + column, sums, o - column);
    }
}

extern "C" __global__ void column_sums_f32(float* partial, const float* x, int n, int o) { column_sums(partial, x, n, o); }
EXPORT(column_sums_f32)

extern "C" __global__ void column_sums_bf16(float* partial, const bf16* x, int n, int o) { column_sums(partial, x, n, o); }
EXPORT(column_sums_bf16)

// Blocks of 32 columns x 8 threads, each of which adds up every eighth partial.
extern "C" __global__ void sum_partials(float* out, const float* partial, int num_partials, int stride, int c) {
    int column = blockIdx.x * COLUMN_THREADS + threadIdx.x % COLUMN_THREADS;
    int first = threadIdx.x / COLUMN_THREADS;
    float sum = 0.0f;
    if (column < c) {
        for (int p = first; p < num_partials; p += ROW_THREADS) sum += partial[static_cast<size_t>(p) * stride + column];
    }
    Shared<float> all = shared<float>(0, ROW_THREADS * COLUMN_THREADS);
    all[threadIdx.x] = sum;
    __syncthreads();
    if (first == 0 && column < c) {
        for (int i = 1; i < ROW_THREADS; ++i) sum += all[i * COLUMN_THREADS + threadIdx.x];
        out[column] += sum;
    }
}
EXPORT(sum_partials)
