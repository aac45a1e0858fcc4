// The pointwise function between the MLP's two matrices. `function`: 0 gelu (tanh), 1 gelu (erf), 2 relu, 3 relu squared,
// 4 silu.
//
// activation_forward: y (n, m) = f(x (n, m) + bias (m)); the bias, f32, is optional.
// activation_backward: dy (n, m) becomes dx = dy f'(x + bias); where wanted, partial (slices, m) = the sums of dx, as it is
//   stored, over each slice of rows.
// gated_forward: y (n, m) = f(gate) up, where a row of x (n, 2 m) holds gate, then up.
// gated_backward: dx (n, 2 m): dgate = dy up f'(gate), then dup = dy f(gate).
#include "common.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978846f, CUBIC = 0.044715f, SQRT_HALF = 0.70710678f, INV_SQRT_2PI = 0.3989423f;

__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float value(int function, float x) {
    switch (function) {
    case 0: return x * logistic(2.0f * SQRT_2_OVER_PI * x * (1.0f + CUBIC * x * x));
    case 1: return 0.5f * x * (1.0f + erff(x * SQRT_HALF));
    case 2: return x < 0.0f ? 0.0f : x; // not a number stays one
    case 3: return x < 0.0f ? 0.0f : x * x;
    default: return x * logistic(x);
    }
}

__device__ __forceinline__ float slope(int function, float x) {
    switch (function) {
    case 0: {
        float gate = logistic(2.0f * SQRT_2_OVER_PI * x * (1.0f + CUBIC * x * x));
        return gate + x * gate * (1.0f - gate) * 2.0f * SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x * x);
    }
    case 1: return 0.5f * (1.0f + erff(x * SQRT_HALF)) + x * INV_SQRT_2PI * expf(-0.5f * x * x);
    case 2: return x > 0.0f ? 1.0f : 0.0f;
    case 3: return x < 0.0f ? 0.0f : 2.0f * x;
    default: {
        float gate = logistic(x);
        return gate * (1.0f + x * (1.0f - gate));
    }
    }
}

// Which eight elements of an (n, m) matrix this thread has; rows are cut into chunks so that none crosses a row.
struct Place {
    size_t row;
    int column, left;
};

__device__ __forceinline__ bool find_place(Place& place, int n, int m) {
    unsigned chunks = (m + 7) / 8;
    unsigned long long index = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    place.row = index / chunks;
    place.column = static_cast<int>(index % chunks) * 8;
    place.left = m - place.column;
    return place.row < static_cast<size_t>(n);
}

template <class T>
__device__ __forceinline__ void activation_forward(T* y, const T* x, const float* bias, int n, int m, int function) {
    Place at;
    if (!find_place(at, n, m)) return;
    size_t start = at.row * m + at.column;
    Eight values = load8(x + start, at.left), biases = bias ? load8(bias + at.column, at.left) : Eight{};
#pragma unroll
    for (int j = 0; j < 8; ++j) values.x[j] = value(function, values.x[j] + biases.x[j]);
    store8(y + start, values, at.left);
}

template <class T>
__device__ __forceinline__ void activation_backward(T* dy, float* partial, const T* x, const float* bias, int n, int m,
                                                    int function) {
    Walk at = find_walk(n, m);
    Eight biases = bias && at.left > 0 ? load8(bias + at.column, at.left) : Eight{}, sums{};
    for (int row = at.row; row < at.end; row += ROW_THREADS) {
        size_t start = static_cast<size_t>(row) * m + at.column;
        Eight values = load8(x + start, at.left), gradient = load8(dy + start, at.left);
#pragma unroll
        for (int j = 0; j < 8; ++j) gradient.x[j] *= slope(function, values.x[j] + biases.x[j]);
        store8(dy + start, gradient, at.left);
        add8(sums, round8<T>(gradient));
    }
    if (partial) store_slice(partial, sums, at, m);
}

template <class T>
__device__ __forceinline__ void gated_forward(T* y, const T* x, int n, int m, int function) {
    Place at;
    if (!find_place(at, n, m)) return;
    const T* gate = x + at.row * 2 * m + at.column;
    Eight gates = load8(gate, at.left), ups = load8(gate + m, at.left);
#pragma unroll
    for (int j = 0; j < 8; ++j) gates.x[j] = value(function, gates.x[j]) * ups.x[j];
    store8(y + at.row * m + at.column, gates, at.left);
}

template <class T>
__device__ __forceinline__ void gated_backward(T* dx, const T* dy, const T* x, int n, int m, int function) {
    Place at;
    if (!find_place(at, n, m)) return;
    size_t start = at.row * 2 * m + at.column;
    Eight gates = load8(x + start, at.left), ups = load8(x + start + m, at.left);
    Eight gradient = load8(dy + at.row * m + at.column, at.left), dgate, dup;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        dgate.x[j] = gradient.x[j] * ups.x[j] * slope(function, gates.x[j]);
        dup.x[j] = gradient.x[j] * value(function, gates.x[j]);
    }
    store8(dx + start, dgate, at.left);
    store8(dx + start + m, dup, at.left);
}

extern "C" __global__ void activation_forward_f32(float* y, const float* x, const float* bias, int n, int m, int function) {
    activation_forward(y, x, bias, n, m, function);
}
EXPORT(activation_forward_f32)

extern "C" __global__ void activation_forward_bf16(bf16* y, const bf16* x, const float* bias, int n, int m, int function) {
    activation_forward(y, x, bias, n, m, function);
}
EXPORT(activation_forward_bf16)

extern "C" __global__ void activation_backward_f32(float* dy, float* partial, const float* x, const float* bias, int n,
                                                   int m, int function) {
    activation_backward(dy, partial, x, bias, n, m, function);
}
EXPORT(activation_backward_f32)

extern "C" __global__ void activation_backward_bf16(bf16* dy, float* partial, const bf16* x, const float* bias, int n,
                                                    int m, int function) {
    activation_backward(dy, partial, x, bias, n, m, function);
}
EXPORT(activation_backward_bf16)

extern "C" __global__ void gated_forward_f32(float* y, const float* x, int n, int m, int function) {
    gated_forward(y, x, n, m, function);
}
EXPORT(gated_forward_f32)

extern "C" __global__ void gated_forward_bf16(bf16* y, const bf16* x, int n, int m, int function) {
    gated_forward(y, x, n, m, function);
}
EXPORT(gated_forward_bf16)

extern "C" __global__ void gated_backward_f32(float* dx, const float* dy, const float* x, int n, int m, int function) {
    gated_backward(dx, dy, x, n, m, function);
}
EXPORT(gated_backward_f32)

extern "C" __global__ void gated_backward_bf16(bf16* dx, const bf16* dy, const bf16* x, int n, int m, int function) {
    gated_backward(dx, dy, x, n, m, function);
}
EXPORT(gated_backward_bf16)
