// Losses of rows of logits, and their gradient in place. A row has `stride` elements, of which the first v are logits and the
// others padding; one block per row. A target of 0xffffffff predicts nothing: loss 0, no gradient.
//
// cross_entropy_forward: losses (n) = logsumexp(logits) - logits[target].
// cross_entropy_backward: the same, and logits become scale (softmax - onehot), padding becomes 0.
#include "common.cuh"

constexpr unsigned NO_TARGET = 0xffffffffu;

// The largest logit and the sum of e^(logit - largest), of the whole block.
template <class T>
__device__ __forceinline__ void softmax_sums(const T* logits, int v, float& largest, float& sum) {
    Shared<float> scratch = shared<float>(0, 33);
    float max = MINUS_INFINITY;
    sum = 0.0f;
    for (int i = threadIdx.x * 8; i < v; i += blockDim.x * 8) {
        Eight values = load8(logits + i, v - i);
        float chunk_max = max;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (i + j < v) chunk_max = max_of(chunk_max, values.x[j]);
        }
        if (chunk_max != MINUS_INFINITY) { // else there is nothing to add, and the difference of infinities is no number
            float terms = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                if (i + j < v) terms += expf(values.x[j] - chunk_max);
            }
            sum = sum * expf(max - chunk_max) + terms;
            max = chunk_max;
        }
    }
    largest = block_max(max, scratch);
    sum = block_sum(max == MINUS_INFINITY ? 0.0f : sum * expf(max - largest), scratch);
}

extern "C" __global__ void cross_entropy_forward_f32(float* losses, const float* logits, const unsigned* targets, int v,
                                                     int stride) {
    size_t row = blockIdx.x;
    unsigned target = targets[row];
    if (target == NO_TARGET) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        return;
    }
    const float* start = logits + row * stride;
    float largest, sum;
    softmax_sums(start, v, largest, sum);
    if (threadIdx.x == 0) losses[row] = logf(sum) + (largest - start[target]);
}
EXPORT(cross_entropy_forward_f32)

template <class T>
__device__ __forceinline__ void cross_entropy_backward(float* losses, T* logits, const unsigned* targets, int v,
                                                       int stride, float scale) {
    size_t row = blockIdx.x;
    unsigned target = targets[row];
    T* start = logits + row * stride;
    float largest = 0.0f, sum = 1.0f, target_logit = 0.0f;
    bool counts = target != NO_TARGET;
    if (counts) {
        target_logit = to_float(start[target]);
        softmax_sums(start, v, largest, sum); // its barriers also part reading the target's logit from overwriting it
    }
    if (threadIdx.x == 0) losses[row] = counts ? logf(sum) + (largest - target_logit) : 0.0f;
    float factor = scale / sum;
    for (int i = threadIdx.x * 8; i < stride; i += blockDim.x * 8) {
        Eight values = load8(start + i, stride - i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float gradient = counts && i + j < v ? factor * expf(values.x[j] - largest) : 0.0f;
            if (counts && static_cast<unsigned>(i + j) == target) gradient -= scale;
            values.x[j] = gradient;
        }
        store8(start + i, values, stride - i);
    }
}

extern "C" __global__ void cross_entropy_backward_f32(float* losses, float* logits, const unsigned* targets, int v,
                                                      int stride, float scale) {
    cross_entropy_backward(losses, logits, targets, v, stride, scale);
}
EXPORT(cross_entropy_backward_f32)

extern "C" __global__ void cross_entropy_backward_bf16(float* losses, bf16* logits, const unsigned* targets, int v,
                                                       int stride, float scale) {
    cross_entropy_backward(losses, logits, targets, v, stride, scale);
}
EXPORT(cross_entropy_backward_bf16)
