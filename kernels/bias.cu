// Biases that cuBLASLt does not add.
//
// add_bias: c (rows, columns) += bias (columns), a block for each row.
#include "common.cuh"

template <class C, class B>
__device__ __forceinline__ void add_bias(C* c, const B* bias, int columns) {
    C* row = c + static_cast<size_t>(blockIdx.x) * columns;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) row[j] = from_float<C>(to_float(row[j]) + to_float(bias[j]));
}

extern "C" __global__ void add_bias_f32_to_f32(float* c, const float* bias, int columns) { add_bias(c, bias, columns); }
EXPORT(add_bias_f32_to_f32)

extern "C" __global__ void add_bias_bf16_to_f32(float* c, const bf16* bias, int columns) { add_bias(c, bias, columns); }
EXPORT(add_bias_bf16_to_f32)

extern "C" __global__ void add_bias_bf16_to_bf16(bf16* c, const bf16* bias, int columns) { add_bias(c, bias, columns); }
EXPORT(add_bias_bf16_to_bf16)
