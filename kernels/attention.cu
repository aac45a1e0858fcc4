// Attention of bfloat16 on tensor cores, scores tile by tile in registers: forward, and backward from what it saved.
//
// qkv (b, t, (h + 2 kv_heads) d), y (b, t, h d) and their gradients are bf16; log-sum-exp and delta (b, h, t) are f32,
// and so are key_bias (h, bias_stride), which may be null, all accumulators and the softmax. Probabilities and the
// gradients of scores are rounded to bf16 where they are multiplied. `ops/attention.rs` is the definition.
//
//   forward: y, and the natural logarithm of the sum of the exponentials of each row of scores
//   backward_delta: delta = the inner product of dy and y for each token and head
//   backward_dkv, backward_dq: dqkv, overwritten; each element is summed by one warp in a fixed order
//
// A kernel is made for heads of up to D channels; the channels that a smaller head lacks are zeros in shared memory.
// Where the head size or a pointer rules out 16-byte copies, tiles are copied element by element.
#include "common.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;

struct Shape {
    int t, h, kv_heads, d;
    Sight sight;
    float scale;
};

// ---- Tiles ----

// The channels of one head of one sequence.
template <class T>
struct Head {
    T* data;
    size_t stride;
    int t, d;
    bool aligned; // every eight channels of every token are

    __device__ __forceinline__ T* at(int token, int channel) const { return data + token * stride + channel; }
};

// Head `head` of `heads` that lie side by side in a tensor (b, t, heads d).
template <class T>
__device__ __forceinline__ Head<T> head_of(T* tensor, const Shape& shape, int heads, int head) {
    size_t stride = static_cast<size_t>(heads) * shape.d;
    T* data = tensor + blockIdx.z * stride * shape.t + static_cast<size_t>(head) * shape.d;
    return {data, stride, shape.t, shape.d, shape.d % 8 == 0 && is_aligned(tensor)};
}

// Where eight channels of a row of a tile lie in shared memory. Eight rows have the same eight channels in different
// banks, and a row has its own in different banks too.
template <int D>
__device__ __forceinline__ int place(int row, int eight) {
    return (row * (D / 8) + (eight ^ (row % 8))) * 8;
}

// Begins to copy tokens of a head to a tile; what the head lacks becomes 0.
template <int ROWS, int D>
__device__ __forceinline__ void load_tile(Shared<bf16> tile, const Head<const bf16>& head, int first_token) {
    // A thread has the same channels of every `STEP`th row: a multiple of 8, so that they lie in the same place.
    constexpr int EIGHTS = D / 8, STEP = THREADS / EIGHTS;
    int first_row = threadIdx.x / EIGHTS, eight = threadIdx.x % EIGHTS;
    int token = first_token + first_row, left = head.d - 8 * eight;
    bf16* to = &tile[place<D>(first_row, eight)];
    if (head.aligned) {
        const bf16* from = left > 0 ? head.at(token, 8 * eight) : head.data;
        size_t step = left > 0 ? STEP * head.stride : 0;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; ++i) {
            bool exists = left > 0 && token + i * STEP < head.t;
            copy16_async(to + i * STEP * D, exists ? from + i * step : head.data, exists ? 16 : 0);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / STEP; ++i) {
            int existing = token + i * STEP < head.t ? left : 0;
            store8_aligned(to + i * STEP * D, load8(head.at(token + i * STEP, 8 * eight), existing));
        }
    }
}

// Calls `visit(m, n, i, row, column)` for a lane's elements of 16 M x 8 N accumulators.
template <int M, int N, class Visit>
__device__ __forceinline__ void for_each_element(Visit visit) {
    int lane = lane_index();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) visit(m, n, i, 16 * m + lane / 4 + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2);
        }
    }
}

// Writes a warp's accumulators, multiplied by a factor, to tokens of a head by way of rows of a tile that no other warp
// uses.
template <int M, int D>
__device__ __forceinline__ void store_rows(const Head<bf16>& head, int first_token, const float (&x)[M][D / 8][4],
                                           float factor, Shared<bf16> tile, int first_row) {
    int lane = lane_index();
    warp_barrier();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = first_row + 16 * m + 8 * half + lane / 4;
                unsigned packed = pack_bf16(factor * x[m][n][2 * half], factor * x[m][n][2 * half + 1]);
                *reinterpret_cast<unsigned*>(&tile[place<D>(row, n) + lane % 4 * 2]) = packed;
            }
        }
    }
    warp_barrier();
#pragma unroll 1
    for (int i = lane; i < 16 * M * D / 8; i += 32) {
        int row = i / (D / 8), eight = i % (D / 8);
        int left = first_token + row < head.t ? head.d - 8 * eight : 0;
        if (left <= 0) continue;
        Eight values = load8_aligned(&tile[place<D>(first_row + row, eight)]);
        store8(head.at(first_token + row, 8 * eight), values, left);
    }
}

// ---- Products ----

// The left operand of products: rows of a tile, read again for each product.
template <int M, int D>
struct RowsInShared {
    Shared<bf16> tile;
    int first_row;

    __device__ __forceinline__ RowsInShared(Shared<bf16> tile, int first_row) : tile(tile), first_row(first_row) {}

    __device__ __forceinline__ void fragment(unsigned (&a)[4], int m, int k) const {
        int lane = lane_index();
        load_matrices(a, &tile[place<D>(first_row + 16 * m + lane % 16, 2 * k + lane / 16)]);
    }
};

// The same, read once.
template <int M, int D>
struct RowsInRegisters {
    unsigned fragments[M][D / 16][4];

    __device__ __forceinline__ RowsInRegisters(Shared<bf16> tile, int first_row) {
        RowsInShared<M, D> rows(tile, first_row);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int k = 0; k < D / 16; ++k) rows.fragment(fragments[m][k], m, k);
        }
    }

    __device__ __forceinline__ void fragment(unsigned (&a)[4], int m, int k) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = fragments[m][k][i];
    }
};

// Two neighbouring tiles of accumulators += a b, for a `b` as `load_matrices` gives it.
__device__ __forceinline__ void multiply_pair(float (&left)[4], float (&right)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[4]) {
    const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_bf16(left, a, first);
    mma_bf16(right, a, second);
}

// c (16 M x 8 N) = the inner products of rows over all channels: those of `a` and the first 8 N of a tile.
template <int M, int N, int D, class Rows>
__device__ __forceinline__ void inner_products(float (&c)[M][N][4], const Rows& rows, Shared<bf16> tile) {
    int lane = lane_index();
    for_each_element<M, N>([&](int m, int n, int i, int, int) { c[m][n][i] = 0.0f; });
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) rows.fragment(a[m], m, k);
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            unsigned b[4];
            load_matrices(b, &tile[place<D>(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2)]);
#pragma unroll
            for (int m = 0; m < M; ++m) multiply_pair(c[m][2 * n], c[m][2 * n + 1], a[m], b);
        }
    }
}

// c (16 M x D) += weights (16 M x 8 N), rounded to bf16, times the first 8 N rows of a tile.
template <int M, int N, int D>
__device__ __forceinline__ void add_weighted_rows(float (&c)[M][D / 8][4], const float (&weights)[M][N][4],
                                                  Shared<bf16> tile) {
    int lane = lane_index();
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        // Accumulators of neighbouring tiles have the layout of a left operand.
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float(&pair)[4] = weights[m][2 * k + i / 2];
                a[m][i] = pack_bf16(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            unsigned b[4];
            load_matrices_transposed(b, &tile[place<D>(16 * k + lane % 16, 2 * n + lane / 16)]);
#pragma unroll
            for (int m = 0; m < M; ++m) multiply_pair(c[m][2 * n], c[m][2 * n + 1], a[m], b);
        }
    }
}

// ---- Scores ----

// The biases of a head's keys, or null.
__device__ __forceinline__ const float* bias_of(const float* key_bias, int bias_stride, int head) {
    return key_bias ? key_bias + static_cast<size_t>(head) * bias_stride : nullptr;
}

// Adds the biases, and makes the scores of keys out of sight minus infinity. `queries_are_rows`, or else the keys are.
// Returns what the scores must be multiplied with to be exponents of 2.
template <bool queries_are_rows, int M, int N>
__device__ __forceinline__ float complete(float (&scores)[M][N][4], const Shape& shape, const float* bias,
                                          int first_row, int first_column) {
    const Sight& sight = shape.sight;
    float factor = shape.scale * LOG2_E;
    if (bias) {
        for_each_element<M, N>([&](int m, int n, int i, int row, int column) {
            int key = queries_are_rows ? first_column + column : first_row + row;
            scores[m][n][i] = scores[m][n][i] * factor + (key < sight.t ? bias[key] * LOG2_E : 0.0f);
        });
        factor = 1.0f;
    }
    bool all = queries_are_rows ? sight.sees_all(first_row, 16 * M, first_column, 8 * N)
                                : sight.sees_all(first_column, 8 * N, first_row, 16 * M);
    if (!all) {
        for_each_element<M, N>([&](int m, int n, int i, int row, int column) {
            int query = queries_are_rows ? first_row + row : first_column + column;
            int key = queries_are_rows ? first_column + column : first_row + row;
            if (!sight.sees(query, key)) scores[m][n][i] = MINUS_INFINITY;
        });
    }
    return factor;
}

// The probability of a score, from the log-sum-exp of its row. Mathematically it is at most 1; enormous scores, whose
// rounding exceeds that of their exponents, are held to it.
__device__ __forceinline__ float probability(float score, float factor, float log_sum_exp) {
    return exp2_fast(-max_of(0.0f, log_sum_exp * LOG2_E - score * factor));
}

// ---- Kernels ----

// Bytes of shared memory: 2 D (QUERIES + 4 KEYS).
template <int D, int M, int KEYS, class Rows>
__device__ __forceinline__ void forward(bf16* y, float* log_sum_exp, const bf16* qkv, const float* key_bias,
                                        int bias_stride, const Shape& shape) {
    constexpr int QUERIES = 16 * M * WARPS, N = KEYS / 8;
    const Sight& sight = shape.sight;
    // In a causal shape the last queries see the most keys: they go first, so that no long block is left at the end.
    int first_query = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    int head = blockIdx.y, kv_head = head / (shape.h / shape.kv_heads), heads = shape.h + 2 * shape.kv_heads;
    Head<const bf16> q = head_of(qkv, shape, heads, head);
    Head<const bf16> k = head_of(qkv, shape, heads, shape.h + kv_head);
    Head<const bf16> v = head_of(qkv, shape, heads, shape.h + shape.kv_heads + kv_head);
    const float* bias = bias_of(key_bias, bias_stride, head);

    Shared<bf16> q_tile = shared<bf16>(0, QUERIES * D);
    auto kv_tile = [](int i) { return shared<bf16>((QUERIES + i * KEYS) * D * sizeof(bf16), KEYS * D); };
    Range keys = sight.keys_of(first_query, QUERIES);
    int first_tile = keys.first / KEYS, end_tile = (keys.end + KEYS - 1) / KEYS;
    auto load = [&](int tile) {
        int stage = (tile - first_tile) % 2;
        load_tile<KEYS, D>(kv_tile(stage), k, tile * KEYS);
        load_tile<KEYS, D>(kv_tile(2 + stage), v, tile * KEYS);
        copies_commit();
    };

    load_tile<QUERIES, D>(q_tile, q, first_query);
    load(first_tile);
    copies_wait<0>();
    __syncthreads();
    int first_row = 16 * M * warp_index(), warp_query = first_query + first_row;
    Rows q_rows(q_tile, first_row);

    float out[M][D / 8][4], largest[M][2], sums[M][2], natural = 0.0f;
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { out[m][n][i] = 0.0f; });
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            largest[m][half] = MINUS_INFINITY;
            sums[m][half] = 0.0f;
        }
    }
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
        // This tile has come, and nobody reads the one before any more, whose place the next one takes.
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < end_tile) load(tile + 1);
        int stage = (tile - first_tile) % 2, first_key = tile * KEYS;
        if (sight.sees_none(warp_query, 16 * M, first_key, KEYS)) continue;
        float scores[M][N][4], corrections[M][2];
        inner_products<M, N, D>(scores, q_rows, kv_tile(stage));
        float factor = complete<true>(scores, shape, bias, warp_query, first_key);
        natural = factor * LN_2;
        bool changed = false;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float max = largest[m][half], sum = 0.0f;
#pragma unroll
                for (int i = 0; i < 2 * N; ++i) max = max_of(max, scores[m][i / 2][2 * half + i % 2]);
                max = max_of(max, shuffle_xor(max, 1));
                max = max_of(max, shuffle_xor(max, 2));
                // A row that has seen no key yet.
                float finite = max == MINUS_INFINITY ? 0.0f : max;
                float correction = exp2_fast((largest[m][half] - finite) * factor);
#pragma unroll
                for (int i = 0; i < 2 * N; ++i) {
                    float& x = scores[m][i / 2][2 * half + i % 2];
                    x = exp2_fast((x - finite) * factor);
                    sum += x;
                }
                sums[m][half] = sums[m][half] * correction + sum;
                largest[m][half] = max;
                corrections[m][half] = correction;
                changed |= correction != 1.0f;
            }
        }
        if (votes(changed)) {
            for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { out[m][n][i] *= corrections[m][i / 2]; });
        }
        add_weighted_rows<M, N, D>(out, scores, kv_tile(2 + stage));
    }

    size_t first_statistic = (static_cast<size_t>(blockIdx.z) * shape.h + head) * shape.t;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = sums[m][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            sums[m][half] = 1.0f / sum;
            int query = warp_query + 16 * m + 8 * half + lane_index() / 4;
            if (lane_index() % 4 == 0 && query < shape.t) {
                log_sum_exp[first_statistic + query] = largest[m][half] * natural + logf(sum);
            }
        }
    }
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { out[m][n][i] *= sums[m][i / 2]; });
    store_rows<M, D>(head_of(y, shape, shape.h, head), warp_query, out, 1.0f, q_tile, first_row);
}

template <int D>
__device__ __forceinline__ void backward_delta(float* delta, const bf16* dy, const bf16* y, unsigned long long rows,
                                               int t, int h, int d) {
    constexpr int LANES = D / 8; // for each row, which is a head of a token
    unsigned long long row = (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x) / LANES;
    int channel = threadIdx.x % LANES * 8;
    int left = row < rows ? d - channel : 0;
    Eight a = load8(dy + row * d + channel, left), b = load8(y + row * d + channel, left);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += a.x[i] * b.x[i];
#pragma unroll
    for (int bits = LANES / 2; bits > 0; bits /= 2) sum += shuffle_xor(sum, bits);
    if (channel == 0 && row < rows) {
        unsigned long long token = row / h, head = row % h;
        delta[(token / t * h + head) * t + token % t] = sum;
    }
}

// A block owns keys of one head and goes through the queries of all heads that share it. Bytes of shared memory:
// 4 D (KEYS + 2 QUERIES) + 16 QUERIES.
template <int D, int M, int QUERIES>
__device__ __forceinline__ void backward_dkv(bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp,
                                             const float* delta, const float* key_bias, int bias_stride,
                                             const Shape& shape) {
    constexpr int KEYS = 16 * M * WARPS, N = QUERIES / 8;
    const Sight& sight = shape.sight;
    int first_key = blockIdx.x * KEYS;
    int kv_head = blockIdx.y, group = shape.h / shape.kv_heads, heads = shape.h + 2 * shape.kv_heads;
    int k_head = shape.h + kv_head, v_head = k_head + shape.kv_heads;

    Shared<bf16> k_tile = shared<bf16>(0, KEYS * D), v_tile = shared<bf16>(KEYS * D * sizeof(bf16), KEYS * D);
    constexpr size_t QUERIES_AT = 2 * KEYS * D * sizeof(bf16);
    constexpr size_t STATISTICS_AT = QUERIES_AT + 4 * QUERIES * D * sizeof(bf16);
    auto query_tile = [](int i) { return shared<bf16>(QUERIES_AT + i * QUERIES * D * sizeof(bf16), QUERIES * D); };
    auto statistics = [](int i) { return shared<float>(STATISTICS_AT + i * QUERIES * sizeof(float), QUERIES); };
    Range queries = sight.queries_of(first_key, KEYS);
    int first_tile = queries.first / QUERIES, tiles = (queries.end + QUERIES - 1) / QUERIES - first_tile;
    int steps = group * tiles;
    auto head_at = [&](int step) { return kv_head * group + step / tiles; };
    auto query_at = [&](int step) { return (first_tile + step % tiles) * QUERIES; };
    auto load = [&](int step) {
        int stage = step % 2, head = head_at(step), first_query = query_at(step);
        load_tile<QUERIES, D>(query_tile(stage), head_of(qkv, shape, heads, head), first_query);
        load_tile<QUERIES, D>(query_tile(2 + stage), head_of(dy, shape, shape.h, head), first_query);
        if (threadIdx.x < 2 * QUERIES) {
            int i = threadIdx.x % QUERIES, which = threadIdx.x / QUERIES;
            const float* from = which ? delta : log_sum_exp;
            from += (static_cast<size_t>(blockIdx.z) * shape.h + head) * shape.t;
            bool exists = first_query + i < shape.t;
            copy4_async(&statistics(2 * which + stage)[i], exists ? from + first_query + i : from, exists);
        }
        copies_commit();
    };

    load_tile<KEYS, D>(k_tile, head_of(qkv, shape, heads, k_head), first_key);
    load_tile<KEYS, D>(v_tile, head_of(qkv, shape, heads, v_head), first_key);
    load(0);
    int first_row = 16 * M * warp_index(), warp_key = first_key + first_row;
    RowsInShared<M, D> k_rows(k_tile, first_row), v_rows(v_tile, first_row);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { dk[m][n][i] = dv[m][n][i] = 0.0f; });
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        copies_wait<0>();
        __syncthreads();
        if (step + 1 < steps) load(step + 1);
        int stage = step % 2, head = head_at(step), first_query = query_at(step);
        if (sight.sees_none(first_query, QUERIES, warp_key, 16 * M)) continue;
        Shared<bf16> q_tile = query_tile(stage), dy_tile = query_tile(2 + stage);
        Shared<float> log_sum_exps = statistics(stage), deltas = statistics(2 + stage);
        // Keys are rows, queries columns.
        float p[M][N][4], ds[M][N][4];
        inner_products<M, N, D>(p, k_rows, q_tile);
        float factor = complete<false>(p, shape, bias_of(key_bias, bias_stride, head), warp_key, first_query);
        for_each_element<M, N>([&](int m, int n, int i, int, int query) {
            p[m][n][i] = probability(p[m][n][i], factor, log_sum_exps[query]);
        });
        add_weighted_rows<M, N, D>(dv, p, dy_tile);
        inner_products<M, N, D>(ds, v_rows, dy_tile);
        for_each_element<M, N>([&](int m, int n, int i, int, int query) {
            ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - deltas[query]);
        });
        add_weighted_rows<M, N, D>(dk, ds, q_tile);
    }
    store_rows<M, D>(head_of(dqkv, shape, heads, k_head), warp_key, dk, shape.scale, k_tile, first_row);
    store_rows<M, D>(head_of(dqkv, shape, heads, v_head), warp_key, dv, 1.0f, v_tile, first_row);
}

// Bytes of shared memory: 4 D (QUERIES + 2 KEYS).
template <int D, int M, int KEYS, class Rows>
__device__ __forceinline__ void backward_dq(bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp,
                                            const float* delta, const float* key_bias, int bias_stride,
                                            const Shape& shape) {
    constexpr int QUERIES = 16 * M * WARPS, N = KEYS / 8;
    const Sight& sight = shape.sight;
    int first_query = (gridDim.x - 1 - blockIdx.x) * QUERIES; // as in forward
    int head = blockIdx.y, kv_head = head / (shape.h / shape.kv_heads), heads = shape.h + 2 * shape.kv_heads;
    Head<const bf16> k = head_of(qkv, shape, heads, shape.h + kv_head);
    Head<const bf16> v = head_of(qkv, shape, heads, shape.h + shape.kv_heads + kv_head);
    const float* bias = bias_of(key_bias, bias_stride, head);

    Shared<bf16> q_tile = shared<bf16>(0, QUERIES * D), dy_tile = shared<bf16>(QUERIES * D * sizeof(bf16), QUERIES * D);
    auto kv_tile = [](int i) { return shared<bf16>((2 * QUERIES + i * KEYS) * D * sizeof(bf16), KEYS * D); };
    Range keys = sight.keys_of(first_query, QUERIES);
    int first_tile = keys.first / KEYS, end_tile = (keys.end + KEYS - 1) / KEYS;
    auto load = [&](int tile) {
        int stage = (tile - first_tile) % 2;
        load_tile<KEYS, D>(kv_tile(stage), k, tile * KEYS);
        load_tile<KEYS, D>(kv_tile(2 + stage), v, tile * KEYS);
        copies_commit();
    };

    load_tile<QUERIES, D>(q_tile, head_of(qkv, shape, heads, head), first_query);
    load_tile<QUERIES, D>(dy_tile, head_of(dy, shape, shape.h, head), first_query);
    load(first_tile);
    int first_row = 16 * M * warp_index(), warp_query = first_query + first_row;
    size_t first_statistic = (static_cast<size_t>(blockIdx.z) * shape.h + head) * shape.t;
    float log_sum_exps[M][2], deltas[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int query = warp_query + 16 * m + 8 * half + lane_index() / 4;
            log_sum_exps[m][half] = query < shape.t ? log_sum_exp[first_statistic + query] : 0.0f;
            deltas[m][half] = query < shape.t ? delta[first_statistic + query] : 0.0f;
        }
    }
    copies_wait<0>();
    __syncthreads();
    Rows q_rows(q_tile, first_row), dy_rows(dy_tile, first_row);
    float dq[M][D / 8][4];
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { dq[m][n][i] = 0.0f; });
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < end_tile) load(tile + 1);
        int stage = (tile - first_tile) % 2, first_key = tile * KEYS;
        if (sight.sees_none(warp_query, 16 * M, first_key, KEYS)) continue;
        Shared<bf16> k_tile = kv_tile(stage), v_tile = kv_tile(2 + stage);
        float p[M][N][4], ds[M][N][4];
        inner_products<M, N, D>(p, q_rows, k_tile);
        float factor = complete<true>(p, shape, bias, warp_query, first_key);
        inner_products<M, N, D>(ds, dy_rows, v_tile);
        for_each_element<M, N>([&](int m, int n, int i, int, int) {
            float x = probability(p[m][n][i], factor, log_sum_exps[m][i / 2]);
            ds[m][n][i] = x * (ds[m][n][i] - deltas[m][i / 2]);
        });
        add_weighted_rows<M, N, D>(dq, ds, k_tile);
    }
    store_rows<M, D>(head_of(dqkv, shape, heads, head), warp_query, dq, shape.scale, q_tile, first_row);
}

} // namespace

// The tiles of each head size, chosen so that everything fits in registers; `gpu/attention.rs` has them again.
#define KERNELS(D, FORWARD, DKV, DQ)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_d##D##_bf16(                            \
        bf16* y, float* log_sum_exp, const bf16* qkv, const float* key_bias, int bias_stride, int t, int h,            \
        int kv_heads, int d, int causal, int window, float scale) {                                                    \
        forward<FORWARD>(y, log_sum_exp, qkv, key_bias, bias_stride, {t, h, kv_heads, d, {t, causal, window}, scale}); \
    }                                                                                                                  \
    EXPORT(attention_forward_d##D##_bf16)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_delta_d##D##_bf16(                        \
        float* delta, const bf16* dy, const bf16* y, unsigned long long rows, int t, int h, int d) {                   \
        backward_delta<D>(delta, dy, y, rows, t, h, d);                                                                \
    }                                                                                                                  \
    EXPORT(attention_backward_delta_d##D##_bf16)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_dkv_d##D##_bf16(                       \
        bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp, const float* delta,                     \
        const float* key_bias, int bias_stride, int t, int h, int kv_heads, int d, int causal, int window,             \
        float scale) {                                                                                                 \
        backward_dkv<DKV>(dqkv, dy, qkv, log_sum_exp, delta, key_bias, bias_stride,                                    \
                          {t, h, kv_heads, d, {t, causal, window}, scale});                                            \
    }                                                                                                                  \
    EXPORT(attention_backward_dkv_d##D##_bf16)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_dq_d##D##_bf16(                        \
        bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp, const float* delta,                     \
        const float* key_bias, int bias_stride, int t, int h, int kv_heads, int d, int causal, int window,             \
        float scale) {                                                                                                 \
        backward_dq<DQ>(dqkv, dy, qkv, log_sum_exp, delta, key_bias, bias_stride,                                      \
                        {t, h, kv_heads, d, {t, causal, window}, scale});                                              \
    }                                                                                                                  \
    EXPORT(attention_backward_dq_d##D##_bf16)

#define LIST(...) __VA_ARGS__
KERNELS(64, LIST(64, 2, 64, RowsInRegisters<2, 64>), LIST(64, 2, 32), LIST(64, 2, 32, RowsInRegisters<2, 64>))
KERNELS(128, LIST(128, 2, 32, RowsInShared<2, 128>), LIST(128, 1, 32), LIST(128, 1, 32, RowsInRegisters<1, 128>))
