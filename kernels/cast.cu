// Casts between number formats.
//
// cast: y (len) = x (len) in the other format, to nearest.
#include "common.cuh"

extern "C" __global__ void cast_f32_to_bf16(bf16* y, const float* x, unsigned long long len) {
    unsigned long long first = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (first >= len) return;
    int left = len - first < 8 ? static_cast<int>(len - first) : 8;
    store8(y + first, load8(x + first, left), left);
}
EXPORT(cast_f32_to_bf16)
