// AdamW over flat f32 buffers, as `optim/adamw.rs` computes it, and the bfloat16 copy that the matrix products read.
//
// decays holds a byte for every 128 elements: whether weight decay applies. The copy is rounded to nearest, or stochastically
// (`stochastic`): up with a probability of the distance to the number below, by the random bits of key and index.
//
// adamw_copy: the copy alone, of the masters as they are.
#include "common.cuh"

__device__ __forceinline__ float round_stochastically(float x, unsigned random) {
    unsigned bits = float_to_bits(x);
    // What is no finite number is left alone.
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return bits_to_float((bits + (random & 0xffffu)) & 0xffff0000u);
}

__device__ __forceinline__ void store_copy(bf16* copy, Eight param, unsigned long long first, int left, int stochastic,
                                           unsigned long long key) {
    if (stochastic) {
#pragma unroll
        for (int j = 0; j < 8; ++j) param.x[j] = round_stochastically(param.x[j], random_bits(key, first + j));
    }
    store8(copy + first, param, left);
}

extern "C" __global__ void adamw(float* params, const float* gradients, float* means, float* squares, bf16* copy,
                                 const unsigned char* decays, unsigned long long len, float gradient_scale, float keep,
                                 float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float step_size,
                                 float inverse_root_correction2, float eps, int stochastic, unsigned long long key) {
    unsigned long long first = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (first >= len) return;
    int left = len - first < 8 ? static_cast<int>(len - first) : 8;
    Eight param = load8(params + first, left), gradient = load8(gradients + first, left);
    Eight mean = load8(means + first, left), square = load8(squares + first, left);
    float kept = decays[first / 128] ? keep : 1.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float g = gradient_scale * gradient.x[j];
        mean.x[j] = beta1 * mean.x[j] + one_minus_beta1 * g;
        square.x[j] = beta2 * square.x[j] + one_minus_beta2 * (g * g);
        float divisor = sqrtf(square.x[j]) * inverse_root_correction2 + eps;
        param.x[j] = param.x[j] * kept - step_size * mean.x[j] / divisor;
    }
    store8(params + first, param, left);
    store8(means + first, mean, left);
    store8(squares + first, square, left);
    if (copy) store_copy(copy, param, first, left, stochastic, key);
}
EXPORT(adamw)

extern "C" __global__ void adamw_copy(bf16* copy, const float* params, unsigned long long len, int stochastic,
                                      unsigned long long key) {
    unsigned long long first = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (first >= len) return;
    int left = len - first < 8 ? static_cast<int>(len - first) : 8;
    store_copy(copy, load8(params + first, left), first, left, stochastic, key);
}
EXPORT(adamw_copy)
