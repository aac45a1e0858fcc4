// Attention of f32 without tensor cores, forward only: for scores that are to have f32's precision.
//
// qkv (b, t, (h + 2 kv_heads) d), y (b, t, h d), log-sum-exp (b, h, t) and key_bias (h, bias_stride), which may be
// null, are f32; every sum is one of f32 and every exponential is exact to rounding. `ops/attention.rs` is the
// definition.
//
// A kernel is made for heads of up to D channels; the channels that a smaller head lacks are zeros in shared memory.
#include "common.cuh"

namespace {

// Threads with the same row of a block's 16 columns own four queries: of the tile's keys, and of the channels, each has
// every 16th group.
constexpr int COLUMNS = 16;
constexpr int OWN_QUERIES = 4;

struct Four {
    float x[4];
};

__device__ __forceinline__ Four four_at(Shared<float> from, int i) {
    Sixteen bytes = load16(&from[i]);
    return {{bits_to_float(bytes.word[0]), bits_to_float(bytes.word[1]), bits_to_float(bytes.word[2]),
             bits_to_float(bytes.word[3])}};
}

// Copies tokens of a head to rows of D + 4 numbers; what the head lacks becomes 0.
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(Shared<float> tile, const float* head, size_t stride, int t, int d,
                                          int first_token) {
    for (int i = threadIdx.x; i < ROWS * D / 8; i += COLUMNS * ROWS / OWN_QUERIES) {
        int row = i / (D / 8), channel = i % (D / 8) * 8, token = first_token + row;
        Eight values = load8(head + token * stride + channel, token < t ? d - channel : 0);
        store8_aligned(&tile[row * (D + 4) + channel], values);
    }
}

// Combines the values of the threads that share queries.
template <class Combine>
__device__ __forceinline__ float over_columns(float x, Combine combine) {
#pragma unroll
    for (int bits = COLUMNS / 2; bits > 0; bits /= 2) x = combine(x, shuffle_xor(x, bits));
    return x;
}

// Queries and keys of a tile are `ROWS` each. Bytes of shared memory: 4 (2 ROWS (D + 4) + ROWS (ROWS + 4)).
template <int D, int ROWS>
__device__ __forceinline__ void forward(float* y, float* log_sum_exp, const float* qkv, const float* key_bias,
                                        int bias_stride, int t, int h, int kv_heads, int d, const Sight& sight,
                                        float scale) {
    constexpr int OWN_KEYS = ROWS / COLUMNS, OWN_FOURS = D / (4 * COLUMNS), STRIDE = D + 4, P_STRIDE = ROWS + 4;
    int first_query = (gridDim.y - 1 - blockIdx.y) * ROWS; // in a causal shape the longest first
    int head = blockIdx.x, kv_head = head / (h / kv_heads);
    size_t width = static_cast<size_t>(h + 2 * kv_heads) * d, y_width = static_cast<size_t>(h) * d;
    const float* sequence = qkv + blockIdx.z * t * width;
    const float* k = sequence + static_cast<size_t>(h + kv_head) * d;
    const float* v = k + static_cast<size_t>(kv_heads) * d;
    const float* bias = key_bias ? key_bias + static_cast<size_t>(head) * bias_stride : nullptr;
    Shared<float> q_tile = shared<float>(0, ROWS * STRIDE), kv_tile = shared<float>(4 * ROWS * STRIDE, ROWS * STRIDE);
    Shared<float> p_tile = shared<float>(8 * ROWS * STRIDE, ROWS * P_STRIDE);
    load_tile<D, ROWS>(q_tile, sequence + static_cast<size_t>(head) * d, width, t, d, first_query);

    int column = threadIdx.x % COLUMNS, first_row = threadIdx.x / COLUMNS * OWN_QUERIES;
    float out[OWN_QUERIES][OWN_FOURS][4] = {}, largest[OWN_QUERIES], sums[OWN_QUERIES] = {};
#pragma unroll
    for (int i = 0; i < OWN_QUERIES; ++i) largest[i] = MINUS_INFINITY;
    Range keys = sight.keys_of(first_query, ROWS);
#pragma unroll 1
    for (int first_key = keys.first / ROWS * ROWS; first_key < keys.end; first_key += ROWS) {
        __syncthreads(); // values of the tile before may still be read
        load_tile<D, ROWS>(kv_tile, k, width, t, d, first_key);
        __syncthreads();
        float scores[OWN_QUERIES][OWN_KEYS] = {};
#pragma unroll 4
        for (int channel = 0; channel < D; channel += 4) {
            Four queries[OWN_QUERIES];
#pragma unroll
            for (int i = 0; i < OWN_QUERIES; ++i) queries[i] = four_at(q_tile, (first_row + i) * STRIDE + channel);
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                Four key = four_at(kv_tile, (column + j * COLUMNS) * STRIDE + channel);
#pragma unroll
                for (int i = 0; i < OWN_QUERIES; ++i) {
#pragma unroll
                    for (int n = 0; n < 4; ++n) scores[i][j] += queries[i].x[n] * key.x[n];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < OWN_QUERIES; ++i) {
            float max = largest[i], sum = 0.0f;
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                int key = first_key + column + j * COLUMNS;
                bool seen = sight.sees(first_query + first_row + i, key);
                scores[i][j] = seen ? scale * scores[i][j] + (bias ? bias[key] : 0.0f) : MINUS_INFINITY;
                max = max_of(max, scores[i][j]);
            }
            max = over_columns(max, [](float a, float b) { return max_of(a, b); });
            // A row that has seen no key yet.
            float finite = max == MINUS_INFINITY ? 0.0f : max;
            float correction = expf(largest[i] - finite);
            largest[i] = max;
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                float p = expf(scores[i][j] - finite);
                p_tile[(first_row + i) * P_STRIDE + column + j * COLUMNS] = p;
                sum += p;
            }
            sums[i] = sums[i] * correction + sum;
#pragma unroll
            for (int n = 0; n < OWN_FOURS * 4; ++n) out[i][n / 4][n % 4] *= correction;
        }
        __syncthreads(); // keys are read no more, and probabilities are there
        load_tile<D, ROWS>(kv_tile, v, width, t, d, first_key);
        __syncthreads();
#pragma unroll 1
        for (int key = 0; key < ROWS; key += 4) {
            Four p[OWN_QUERIES];
#pragma unroll
            for (int i = 0; i < OWN_QUERIES; ++i) p[i] = four_at(p_tile, (first_row + i) * P_STRIDE + key);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int group = 0; group < OWN_FOURS; ++group) {
                    Four value = four_at(kv_tile, (key + j) * STRIDE + (column + group * COLUMNS) * 4);
#pragma unroll
                    for (int i = 0; i < OWN_QUERIES; ++i) {
#pragma unroll
                        for (int n = 0; n < 4; ++n) out[i][group][n] += p[i].x[j] * value.x[n];
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN_QUERIES; ++i) {
        float sum = over_columns(sums[i], [](float a, float b) { return a + b; });
        int query = first_query + first_row + i;
        if (query >= t) continue;
        if (column == 0) log_sum_exp[(static_cast<size_t>(blockIdx.z) * h + head) * t + query] = largest[i] + logf(sum);
        float* to = y + (static_cast<size_t>(blockIdx.z) * t + query) * y_width + static_cast<size_t>(head) * d;
#pragma unroll
        for (int n = 0; n < OWN_FOURS * 4; ++n) {
            int channel = (column + n / 4 * COLUMNS) * 4 + n % 4;
            if (channel < d) to[channel] = out[i][n / 4][n % 4] / sum;
        }
    }
}

} // namespace

#define KERNEL(D, ROWS)                                                                                                \
    extern "C" __global__ void __launch_bounds__(4 * ROWS, 1) attention_forward_d##D##_f32(                            \
        float* y, float* log_sum_exp, const float* qkv, const float* key_bias, int bias_stride, int t, int h,          \
        int kv_heads, int d, int causal, int window, float scale) {                                                    \
        forward<D, ROWS>(y, log_sum_exp, qkv, key_bias, bias_stride, t, h, kv_heads, d, {t, causal, window}, scale);   \
    }                                                                                                                  \
    EXPORT(attention_forward_d##D##_f32)

KERNEL(64, 64)
KERNEL(128, 64)
KERNEL(256, 32)
