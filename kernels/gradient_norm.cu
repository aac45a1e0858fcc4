// The sum of squares of a flat buffer: partial (blocks) in f64, one for every `per_block` elements; the host adds them up in
// order, because it decides about the step anyway.
#include "common.cuh"

extern "C" __global__ void sum_of_squares(double* partial, const float* x, unsigned long long len, unsigned per_block) {
    unsigned long long start = static_cast<unsigned long long>(blockIdx.x) * per_block;
    unsigned long long end = start + per_block < len ? start + per_block : len;
    double sum = 0.0;
    for (unsigned long long i = start + threadIdx.x * 8; i < end; i += blockDim.x * 8) {
        Eight values = load8(x + i, end - i < 8 ? static_cast<int>(end - i) : 8);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += static_cast<double>(values.x[j]) * values.x[j];
    }
    Shared<double> sums = shared<double>(0, blockDim.x);
    sums[threadIdx.x] = sum;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}
EXPORT(sum_of_squares)
