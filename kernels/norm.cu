// Normalisation over channels with the residual stream's additions fused in; one warp per row forward, one block per row
// backward. `kind` is 0 for layer norm, 1 for RMS norm, 2 for RMS norm with the factor 1 + gain.
//
// forward: x (n, c) f32 is the residual stream; branch1 and branch2 (n, c), each optional, are added to it; the sum goes to
//   `sum` (n, c) f32 where wanted (it may be x itself). y (n, c) = (sum - mean) rstd factor + bias, in the compute format and,
//   where wanted, as f32 to `wide`. Saves mean and rstd of each row in stats (n, 2).
// backward: dx (n, c) f32 += (accumulate) or = rstd (g - mean(g) - x̂ mean(g x̂)), with g = (dy + side) factor, where `side`
//   is the optional gradient of a branch from the same place, in bfloat16; the result also goes
//   to `narrow` in bfloat16 where wanted. The sums over the rows of one block go to partial (blocks, 3, c): those of dgain,
//   of dbias and, where wanted, of `narrow`; sum_partials adds them up.
#include "common.cuh"

__device__ __forceinline__ float factor_of(float gain, int kind) { return kind == 2 ? 1.0f + gain : gain; }

template <class T>
__device__ __forceinline__ void norm_forward(T* y, float* wide, float* sum, float* stats, const float* x,
                                             const T* branch1, const T* branch2, const float* gain, const float* bias,
                                             int n, int c, float eps, int kind) {
    int rows_per_block = blockDim.x / 32;
    int row = blockIdx.x * rows_per_block + warp_index();
    if (row >= n) return;
    size_t start = static_cast<size_t>(row) * c;
    int padded = (c + 7) / 8 * 8;
    // The row as f32, so that it is read once.
    Shared<float> kept = shared<float>(static_cast<size_t>(warp_index()) * padded * sizeof(float), padded);
    float total = 0.0f;
    for (int i = lane_index() * 8; i < c; i += 256) {
        Eight values = load8(x + start + i, c - i);
        if (branch1) {
            Eight branch = load8(branch1 + start + i, c - i);
#pragma unroll
            for (int j = 0; j < 8; ++j) values.x[j] += branch.x[j];
        }
        if (branch2) {
            Eight branch = load8(branch2 + start + i, c - i);
#pragma unroll
            for (int j = 0; j < 8; ++j) values.x[j] += branch.x[j];
        }
        if (sum) store8(sum + start + i, values, c - i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            kept[i + j] = values.x[j]; // a lane reads back only what it wrote itself
            total += values.x[j];
        }
    }
    float mean = kind == 0 ? warp_sum(total) / c : 0.0f;
    float squares = 0.0f;
    for (int i = lane_index() * 8; i < c; i += 256) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float centred = kept[i + j] - mean;
            if (i + j < c) squares += centred * centred;
        }
    }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / c + eps);
    if (lane_index() == 0) {
        stats[2 * static_cast<size_t>(row)] = mean;
        stats[2 * static_cast<size_t>(row) + 1] = rstd;
    }
    for (int i = lane_index() * 8; i < c; i += 256) {
        Eight gains = load8(gain + i, c - i), values;
        Eight biases = bias ? load8(bias + i, c - i) : Eight{};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            values.x[j] = (kept[i + j] - mean) * rstd * factor_of(gains.x[j], kind) + biases.x[j];
        }
        store8(y + start + i, values, c - i);
        if (wide) store8(wide + start + i, values, c - i);
    }
}

template <class D>
__device__ __forceinline__ Eight load_gradient(const D* dy, const bf16* side, size_t at, int left) {
    Eight gradient = load8(dy + at, left);
    if (side) {
        Eight more = load8(side + at, left);
#pragma unroll
        for (int j = 0; j < 8; ++j) gradient.x[j] += more.x[j];
    }
    return gradient;
}

// Where a thread keeps the sum of its column i + j, i being the first of eight: beside the j-th of the other threads' eights,
// so that a warp's sums lie in different banks.
__device__ __forceinline__ int place_of(int i, int j) {
    int thread = threadIdx.x, threads = blockDim.x;
    return i - 8 * thread + j * threads + thread;
}

// `D` is the format of dy.
template <class D>
__device__ __forceinline__ void norm_backward(float* dx, bf16* narrow, float* partial, const D* dy, const bf16* side,
                                              const float* x, const float* stats, const float* gain, int n, int c,
                                              int kind, int accumulate, int sums_narrow) {
    int thread = threadIdx.x, threads = blockDim.x, step = 8 * threads, padded = (c + step - 1) / step * step;
    // A thread owns columns: nobody else touches its part of the sums.
    Shared<float> dgain = shared<float>(0, padded);
    Shared<float> dbias = shared<float>(padded * sizeof(float), padded);
    Shared<float> narrow_sums = shared<float>(2 * padded * sizeof(float), padded);
    Shared<float> scratch = shared<float>(3 * padded * sizeof(float), 33);
    for (int i = thread; i < padded; i += threads) dgain[i] = dbias[i] = narrow_sums[i] = 0.0f;
    for (int row = blockIdx.x; row < n; row += gridDim.x) {
        size_t start = static_cast<size_t>(row) * c;
        float mean = stats[2 * static_cast<size_t>(row)], rstd = stats[2 * static_cast<size_t>(row) + 1];
        float g_sum = 0.0f, gx_sum = 0.0f;
        for (int i = 8 * thread; i < c; i += step) {
            Eight dys = load_gradient(dy, side, start + i, c - i), xs = load8(x + start + i, c - i), gains = load8(gain + i, c - i);
#pragma unroll
            for (int j = 0; j < 8; ++j) { // beyond the row dy is 0, and nobody looks at the sums
                float normal = (xs.x[j] - mean) * rstd, g = dys.x[j] * factor_of(gains.x[j], kind);
                g_sum += g;
                gx_sum += g * normal;
                dgain[place_of(i, j)] += dys.x[j] * normal;
                dbias[place_of(i, j)] += dys.x[j];
            }
        }
        float g_mean = kind == 0 ? block_sum(g_sum, scratch) / c : 0.0f;
        float gx_mean = block_sum(gx_sum, scratch) / c;
        for (int i = 8 * thread; i < c; i += step) {
            Eight dys = load_gradient(dy, side, start + i, c - i), xs = load8(x + start + i, c - i), gains = load8(gain + i, c - i);
            Eight gradient = accumulate ? load8(dx + start + i, c - i) : Eight{};
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float normal = (xs.x[j] - mean) * rstd, g = dys.x[j] * factor_of(gains.x[j], kind);
                gradient.x[j] += rstd * (g - g_mean - normal * gx_mean);
            }
            store8(dx + start + i, gradient, c - i);
            if (narrow) store8(narrow + start + i, gradient, c - i);
            if (sums_narrow) {
                Eight rounded = round8<bf16>(gradient);
#pragma unroll
                for (int j = 0; j < 8; ++j) narrow_sums[place_of(i, j)] += rounded.x[j];
            }
        }
    }
    float* sums = partial + static_cast<size_t>(blockIdx.x) * 3 * c;
    for (int i = 8 * thread; i < c; i += step) {
        Eight gains, biases, narrows;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            int at = place_of(i, j);
            gains.x[j] = dgain[at];
            biases.x[j] = dbias[at];
            narrows.x[j] = narrow_sums[at];
        }
        store8(sums + i, gains, c - i);
        store8(sums + c + i, biases, c - i);
        if (sums_narrow) store8(sums + 2 * c + i, narrows, c - i);
    }
}

extern "C" __global__ void norm_forward_f32(float* y, float* wide, float* sum, float* stats, const float* x,
                                            const float* branch1, const float* branch2, const float* gain,
                                            const float* bias, int n, int c, float eps, int kind) {
    norm_forward(y, wide, sum, stats, x, branch1, branch2, gain, bias, n, c, eps, kind);
}
EXPORT(norm_forward_f32)

extern "C" __global__ void norm_forward_bf16(bf16* y, float* wide, float* sum, float* stats, const float* x,
                                             const bf16* branch1, const bf16* branch2, const float* gain,
                                             const float* bias, int n, int c, float eps, int kind) {
    norm_forward(y, wide, sum, stats, x, branch1, branch2, gain, bias, n, c, eps, kind);
}
EXPORT(norm_forward_bf16)

extern "C" __global__ void norm_backward_f32(float* dx, bf16* narrow, float* partial, const float* dy, const bf16* side,
                                            const float* x, const float* stats, const float* gain, int n, int c,
                                            int kind, int accumulate, int sums_narrow) {
    norm_backward(dx, narrow, partial, dy, side, x, stats, gain, n, c, kind, accumulate, sums_narrow);
}
EXPORT(norm_backward_f32)

extern "C" __global__ void norm_backward_bf16(float* dx, bf16* narrow, float* partial, const bf16* dy, const bf16* side,
                                             const float* x, const float* stats, const float* gain, int n, int c,
                                             int kind, int accumulate, int sums_narrow) {
    norm_backward(dx, narrow, partial, dy, side, x, stats, gain, n, c, kind, accumulate, sums_narrow);
}
EXPORT(norm_backward_bf16)
