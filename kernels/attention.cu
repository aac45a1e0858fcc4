// Attention of bfloat16 on tensor cores, scores tile by tile in registers: forward, and backward from what it saved.
//
// qkv (b, t, (h + 2 kv_heads) d), y (b, t, h d) and their gradients are bf16; log-sum-exp and delta (b, h, t) are f32,
// and so are key_bias (h, bias_stride), which may be null, all accumulators and the softmax. Probabilities and the
// gradients of scores are rounded to bf16 where they are multiplied. `ops/attention.rs` is the definition.
//
//   forward: y, and the natural logarithm of the sum of the exponentials of each row of scores
//   backward_dq: the queries' part of dqkv, and delta, minus the inner product of dy and y for each token and head
//   backward_dkv: the other parts of dqkv, from that delta
//
// Gradients are overwritten, and each of their elements is summed by one warp in a fixed order.
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
    int stride; // from one token to the next; an `int` counts the elements of a sequence
    int t, d;
    bool aligned; // every eight channels of every token are

    __device__ __forceinline__ T* at(int token, int channel) const {
        return data + (token * stride + channel);
    }
};

// Head `head` of `heads` that lie side by side in a tensor (b, t, heads d).
template <class T>
__device__ __forceinline__ Head<T> head_of(T* tensor, const Shape& shape, int heads, int head) {
    int stride = heads * shape.d;
    T* data = tensor + static_cast<size_t>(blockIdx.z) * stride * shape.t + static_cast<size_t>(head) * shape.d;
    return {data, stride, shape.t, shape.d, shape.d % 8 == 0 && is_aligned(tensor)};
}

// Where eight channels of a row of a tile lie in shared memory. Eight rows have the same eight channels in different
// banks, and a row has its own in different banks too.
template <int D>
__device__ __forceinline__ int place(int row, int eight) {
    return (row * (D / 8) + (eight ^ (row % 8))) * 8;
}

// The place 8 `eights` rows and 16 `sixteens` channels further than one of the first 16 channels. A lane has one place,
// from which the others are constants away: rows have their channels in the order of an exclusive or, as this one is.
template <int D>
__device__ __forceinline__ int further(int place, int eights, int sixteens) {
    return 8 * eights * D + (place ^ 16 * sixteens);
}

// Begins to copy tokens of a head to a tile; what the head lacks becomes 0.
template <int ROWS, int D>
__device__ __forceinline__ void load_tile(Shared<bf16> tile, const Head<const bf16>& head, int first_token) {
    // A thread has the same channels of every `STEP`th row: a multiple of 8, so that they lie in the same place.
    constexpr int EIGHTS = D / 8, STEP = THREADS / EIGHTS;
    int first_row = threadIdx.x / EIGHTS, eight = threadIdx.x % EIGHTS;
    int token = first_token + first_row, left = head.d - 8 * eight, tokens_left = left > 0 ? head.t - token : 0;
    bf16* to = &tile[place<D>(first_row, eight)];
    if (head.aligned) {
        const bf16* from = head.at(token, 8 * eight);
#pragma unroll
        for (int i = 0; i < ROWS / STEP; ++i) {
            copy16_async(to + i * STEP * D, from + i * static_cast<long long>(STEP * head.stride),
                         i * STEP < tokens_left ? 16 : 0);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / STEP; ++i) {
            int existing = i * STEP < tokens_left ? left : 0;
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
    int first;

    __device__ __forceinline__ RowsInShared(Shared<bf16> tile, int first_row)
        : tile(tile), first(place<D>(first_row + lane_index() % 16, lane_index() / 16)) {}

    __device__ __forceinline__ void fragment(unsigned (&a)[4], int m, int k) const {
        load_matrices(a, &tile[further<D>(first, 2 * m, k)]);
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

// c (16 M x 8 N) += the inner products of rows over all channels: those of `rows` and the first 8 N of a tile.
template <int M, int N, int D, class Rows>
__device__ __forceinline__ void inner_products(float (&c)[M][N][4], const Rows& rows, Shared<bf16> tile) {
    int lane = lane_index(), first = place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) rows.fragment(a[m], m, k);
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            unsigned b[4];
            load_matrices(b, &tile[further<D>(first, 2 * n, k)]);
#pragma unroll
            for (int m = 0; m < M; ++m) multiply_pair(c[m][2 * n], c[m][2 * n + 1], a[m], b);
        }
    }
}

// c (16 M x D) += weights (16 M x 8 N), rounded to bf16, times the first 8 N rows of a tile.
template <int M, int N, int D>
__device__ __forceinline__ void add_weighted_rows(float (&c)[M][D / 8][4], const float (&weights)[M][N][4],
                                                  Shared<bf16> tile) {
    int first = place<D>(lane_index() % 16, lane_index() / 16);
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
            load_matrices_transposed(b, &tile[further<D>(first, 2 * k, n)]);
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

// What `complete` scores must be multiplied with to be exponents of 2.
__device__ __forceinline__ float factor_of(const Shape& shape, const float* bias) {
    return bias ? 1.0f : shape.scale * LOG2_E;
}

// Adds the biases, and makes the scores of keys out of sight minus infinity. `queries_are_rows`, or else the keys are.
template <bool queries_are_rows, int M, int N>
__device__ __forceinline__ void complete(float (&scores)[M][N][4], const Shape& shape, const float* bias,
                                         int first_row, int first_column) {
    const Sight& sight = shape.sight;
    if (bias) {
        for_each_element<M, N>([&](int m, int n, int i, int row, int column) {
            int key = queries_are_rows ? first_column + column : first_row + row;
            scores[m][n][i] = scores[m][n][i] * (shape.scale * LOG2_E) + (key < sight.t ? bias[key] * LOG2_E : 0.0f);
        });
    }
    auto hide = [&](auto is_hidden) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = first_row + 16 * m + 8 * half + lane_index() / 4;
                Range seen = queries_are_rows ? sight.keys_of(row, 1) : sight.queries_of(row, 1);
                // From the lane's first column on, so that columns are constants.
                int start = first_column + lane_index() % 4 * 2;
                seen = {seen.first - start, seen.end - start};
#pragma unroll
                for (int i = 0; i < 2 * N; ++i) {
                    if (is_hidden(seen, i / 2 * 8 + i % 2)) scores[m][i / 2][2 * half + i % 2] = MINUS_INFINITY;
                }
            }
        }
    };
    // Most tiles of a warp need neither.
    Range by_all = queries_are_rows ? sight.keys_of_all(first_row, 16 * M) : sight.queries_of_all(first_row, 16 * M);
    if (first_column < by_all.first) hide([](Range seen, int column) { return column < seen.first; });
    if (first_column + 8 * N > by_all.end) hide([](Range seen, int column) { return column >= seen.end; });
}

// The probability of a score, from the logarithm to base 2 of the sum of its row. Mathematically the exponent is at
// most 0; where rounding makes it more, its sign is changed, which takes no instruction. Up to scores of some 20,000 that is less
// than rounding to bfloat16; those of a million, of which f32 has lost the fractions, stay finite and no more.
__device__ __forceinline__ float probability(float score, float factor, float log2_sum) {
    return exp2_fast(-fabsf(fmaf(score, factor, -log2_sum)));
}

// ---- Kernels ----

// Exponents of 2 above this are rounded by more than probabilities may be.
constexpr float ENORMOUS = 1024.0f;

// What is subtracted from the scores of a row: the largest one, or 0 where no key has been seen yet.
__device__ __forceinline__ float subtrahend(float max) { return max == MINUS_INFINITY ? 0.0f : max; }

// Bytes of shared memory: 2 D (QUERIES + 4 KEYS).
template <int D, int M, int KEYS, class Rows>
__device__ __forceinline__ void forward(bf16* y, float* log_sum_exp, const bf16* qkv, const float* key_bias,
                                        int bias_stride, const Shape& shape) {
    constexpr int QUERIES = 16 * M * WARPS, N = KEYS / 8;
    const Sight& sight = shape.sight;
    // In a causal shape the last queries see the most keys: they go first, so that no long block is left at the end.
    int first_query = (gridDim.y - 1 - blockIdx.y) * QUERIES;
    int head = blockIdx.x, kv_head = head / (shape.h / shape.kv_heads), heads = shape.h + 2 * shape.kv_heads;
    Head<const bf16> q = head_of(qkv, shape, heads, head);
    Head<const bf16> k = head_of(qkv, shape, heads, shape.h + kv_head);
    Head<const bf16> v = head_of(qkv, shape, heads, shape.h + shape.kv_heads + kv_head);
    const float* bias = bias_of(key_bias, bias_stride, head);

    Shared<bf16> q_tile = shared<bf16>(0, QUERIES * D);
    auto kv_tile = [](int i) { return shared<bf16>((QUERIES + i * KEYS) * D * sizeof(bf16), KEYS * D); };
    Range keys = sight.keys_of(first_query, QUERIES);
    int first_tile = keys.first / KEYS, end_tile = (keys.end + KEYS - 1) / KEYS;
    auto load = [&](int tile) {
        int stage = tile & 1;
        load_tile<KEYS, D>(kv_tile(stage), k, tile * KEYS);
        load_tile<KEYS, D>(kv_tile(2 + stage), v, tile * KEYS);
        copies_commit();
    };

    load_tile<QUERIES, D>(q_tile, q, first_query);
    load(first_tile);
    copies_wait<0>();
    __syncthreads();
    int first_row = 16 * M * uniform(warp_index()), warp_query = first_query + first_row;
    Rows q_rows(q_tile, first_row);
    Range seen = sight.keys_of(warp_query, 16 * M);

    float out[M][D / 8][4], largest[M][2], sums[M][2], factor = factor_of(shape, bias);
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
        int stage = tile & 1, first_key = tile * KEYS;
        if (!seen.has_any(first_key, KEYS)) continue;
        float scores[M][N][4], corrections[M][2], shifts[M][2];
        for_each_element<M, N>([&](int m, int n, int i, int, int) { scores[m][n][i] = 0.0f; });
        inner_products<M, N, D>(scores, q_rows, kv_tile(stage));
        complete<true>(scores, shape, bias, warp_query, first_key);
        bool changed = false, enormous = false;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float max = largest[m][half];
#pragma unroll
                for (int i = 0; i < 2 * N; ++i) max = max_of(max, scores[m][i / 2][2 * half + i % 2]);
                max = max_of(max, shuffle_xor(max, 1));
                max = max_of(max, shuffle_xor(max, 2));
                corrections[m][half] = exp2_fast((largest[m][half] - subtrahend(max)) * factor);
                changed |= corrections[m][half] != 1.0f;
                largest[m][half] = max;
                sums[m][half] *= corrections[m][half];
                shifts[m][half] = subtrahend(max) * factor;
                enormous |= fabsf(shifts[m][half]) > ENORMOUS;
            }
        }
        // An exponent is a fused multiplication and subtraction: nothing before it is rounded but what is subtracted.
        // Where that counts, scores are subtracted first.
        if (votes(enormous)) {
            for_each_element<M, N>([&](int m, int n, int i, int, int) {
                scores[m][n][i] -= subtrahend(largest[m][i / 2]);
                shifts[m][i / 2] = 0.0f;
            });
        }
        if (votes(changed)) {
            for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { out[m][n][i] *= corrections[m][i / 2]; });
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < 2 * N; ++i) {
                    float& x = scores[m][i / 2][2 * half + i % 2];
                    x = exp2_fast(fmaf(x, factor, -shifts[m][half]));
                    sums[m][half] += x;
                }
            }
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
                log_sum_exp[first_statistic + query] = largest[m][half] * (factor * LN_2) + logf(sum);
            }
        }
    }
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { out[m][n][i] *= sums[m][i / 2]; });
    store_rows<M, D>(head_of(y, shape, shape.h, head), warp_query, out, 1.0f, q_tile, first_row);
}

// A block owns keys of one head and goes through the queries of all heads that share it. Bytes of shared memory:
// 4 D (KEYS + 2 QUERIES) + 16 QUERIES.
template <int D, int M, int QUERIES>
__device__ __forceinline__ void backward_dkv(bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp,
                                             const float* delta, const float* key_bias, int bias_stride,
                                             const Shape& shape) {
    constexpr int KEYS = 16 * M * WARPS, N = QUERIES / 8;
    const Sight& sight = shape.sight;
    int first_key = blockIdx.y * KEYS; // in a causal shape the first keys are seen by the most queries
    int kv_head = blockIdx.x, group = shape.h / shape.kv_heads, heads = shape.h + 2 * shape.kv_heads;
    int k_head = shape.h + kv_head, v_head = k_head + shape.kv_heads, end_head = (kv_head + 1) * group;

    Shared<bf16> k_tile = shared<bf16>(0, KEYS * D), v_tile = shared<bf16>(KEYS * D * sizeof(bf16), KEYS * D);
    constexpr size_t QUERIES_AT = 2 * KEYS * D * sizeof(bf16);
    constexpr size_t STATISTICS_AT = QUERIES_AT + 4 * QUERIES * D * sizeof(bf16);
    auto query_tile = [](int i) { return shared<bf16>(QUERIES_AT + i * QUERIES * D * sizeof(bf16), QUERIES * D); };
    auto statistics = [](int i) { return shared<float>(STATISTICS_AT + i * QUERIES * sizeof(float), QUERIES); };
    Range queries = sight.queries_of(first_key, KEYS);
    int first_tile = queries.first / QUERIES, end_tile = (queries.end + QUERIES - 1) / QUERIES;
    int head = kv_head * group;
    Head<const bf16> q = head_of(qkv, shape, heads, head), dy_head = head_of(dy, shape, shape.h, head);
    // Some threads copy log-sum-exps, as many others delta.
    int own = threadIdx.x % QUERIES, which = threadIdx.x / QUERIES;
    const float* from = which == 0 ? log_sum_exp : delta;
    from += (static_cast<size_t>(blockIdx.z) * shape.h + head) * shape.t + own;
    auto load = [&](int tile, int stage) {
        int first_query = tile * QUERIES;
        load_tile<QUERIES, D>(query_tile(stage), q, first_query);
        load_tile<QUERIES, D>(query_tile(2 + stage), dy_head, first_query);
        if (which < 2) {
            copy4_async(&statistics(2 * which + stage)[own], from + first_query, first_query + own < shape.t);
        }
        copies_commit();
    };

    load_tile<KEYS, D>(k_tile, head_of(qkv, shape, heads, k_head), first_key);
    load_tile<KEYS, D>(v_tile, head_of(qkv, shape, heads, v_head), first_key);
    load(first_tile, 0);
    int first_row = 16 * M * uniform(warp_index()), warp_key = first_key + first_row;
    RowsInShared<M, D> k_rows(k_tile, first_row), v_rows(v_tile, first_row);
    Range seen_by = sight.queries_of(warp_key, 16 * M);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { dk[m][n][i] = dv[m][n][i] = 0.0f; });
    int tile = first_tile, stage = 0;
#pragma unroll 1
    while (head < end_head) {
        copies_wait<0>();
        __syncthreads();
        const float* bias = bias_of(key_bias, bias_stride, head);
        int this_stage = stage, first_query = tile * QUERIES;
        stage = 1 - stage, tile += 1;
        if (tile == end_tile) {
            // On to the next head.
            tile = first_tile, head += 1;
            q.data += shape.d, dy_head.data += shape.d, from += shape.t;
        }
        if (head < end_head) load(tile, stage);
        if (!seen_by.has_any(first_query, QUERIES)) continue;
        Shared<bf16> q_tile = query_tile(this_stage), dy_tile = query_tile(2 + this_stage);
        Shared<float> log_sum_exps = statistics(this_stage), deltas = statistics(2 + this_stage);
        // Keys are rows, queries columns.
        float p[M][N][4], ds[M][N][4], factor = factor_of(shape, bias);
        for_each_element<M, N>([&](int m, int n, int i, int, int query) {
            p[m][n][i] = 0.0f;
            ds[m][n][i] = deltas[query];
        });
        inner_products<M, N, D>(p, k_rows, q_tile);
        complete<false>(p, shape, bias, warp_key, first_query);
        inner_products<M, N, D>(ds, v_rows, dy_tile);
        for_each_element<M, N>([&](int m, int n, int i, int, int query) {
            p[m][n][i] = probability(p[m][n][i], factor, log_sum_exps[query] * LOG2_E);
            ds[m][n][i] *= p[m][n][i];
        });
        add_weighted_rows<M, N, D>(dv, p, dy_tile);
        add_weighted_rows<M, N, D>(dk, ds, q_tile);
    }
    store_rows<M, D>(head_of(dqkv, shape, heads, k_head), warp_key, dk, shape.scale, k_tile, first_row);
    store_rows<M, D>(head_of(dqkv, shape, heads, v_head), warp_key, dv, 1.0f, v_tile, first_row);
}

// sums -= the inner products of rows with the same rows of another tile; all lanes that share a row have its sum.
template <int M, int D>
__device__ __forceinline__ void subtract_row_products(float (&sums)[M][2], const RowsInRegisters<M, D>& rows,
                                                      const RowsInShared<M, D>& others) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
        float products[2] = {0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            unsigned a[4], b[4];
            rows.fragment(a, m, k);
            others.fragment(b, m, k);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                products[i % 2] += low_of(a[i]) * low_of(b[i]) + high_of(a[i]) * high_of(b[i]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            products[half] += shuffle_xor(products[half], 1);
            products[half] += shuffle_xor(products[half], 2);
            sums[m][half] -= products[half];
        }
    }
}

// A block's own rows are held in registers, and tiles of keys and values take their place. Bytes of shared memory:
// 4 D QUERIES.
template <int D, int M, int STEP>
__device__ __forceinline__ void backward_dq(bf16* dqkv, float* delta, const bf16* dy, const bf16* qkv, const bf16* y,
                                            const float* log_sum_exp, const float* key_bias, int bias_stride,
                                            const Shape& shape) {
    constexpr int QUERIES = 16 * M * WARPS, KEYS = QUERIES / 2, N = STEP / 8;
    const Sight& sight = shape.sight;
    int first_query = (gridDim.y - 1 - blockIdx.y) * QUERIES; // as in forward
    int head = blockIdx.x, kv_head = head / (shape.h / shape.kv_heads), heads = shape.h + 2 * shape.kv_heads;
    Head<const bf16> k = head_of(qkv, shape, heads, shape.h + kv_head);
    Head<const bf16> v = head_of(qkv, shape, heads, shape.h + shape.kv_heads + kv_head);
    const float* bias = bias_of(key_bias, bias_stride, head);

    auto own_tile = [](int i) { return shared<bf16>(i * QUERIES * D * sizeof(bf16), QUERIES * D); };
    auto kv_rows = [](int first, int rows) { return shared<bf16>(first * D * sizeof(bf16), rows * D); };
    Range keys = sight.keys_of(first_query, QUERIES);
    int first_tile = keys.first / KEYS, end_tile = (keys.end + KEYS - 1) / KEYS;
    // The first tile is in the second place: the first one has the queries then.
    auto stage_of = [&](int tile) { return (tile - first_tile + 1) & 1; };
    auto load = [&](int tile) {
        int first = stage_of(tile) * 2 * KEYS;
        load_tile<KEYS, D>(kv_rows(first, KEYS), k, tile * KEYS);
        load_tile<KEYS, D>(kv_rows(first + KEYS, KEYS), v, tile * KEYS);
        copies_commit();
    };

    // The rows of y are needed for delta only.
    load_tile<QUERIES, D>(own_tile(0), head_of(dy, shape, shape.h, head), first_query);
    load_tile<QUERIES, D>(own_tile(1), head_of(y, shape, shape.h, head), first_query);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    int first_row = 16 * M * uniform(warp_index()), warp_query = first_query + first_row;
    RowsInRegisters<M, D> dy_rows(own_tile(0), first_row);
    RowsInShared<M, D> y_rows(own_tile(1), first_row);
    size_t first_statistic = (static_cast<size_t>(blockIdx.z) * shape.h + head) * shape.t;
    float log2_sums[M][2], deltas[M][2] = {};
    subtract_row_products(deltas, dy_rows, y_rows);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int query = warp_query + 16 * m + 8 * half + lane_index() / 4;
            log2_sums[m][half] = query < shape.t ? log_sum_exp[first_statistic + query] * LOG2_E : 0.0f;
            if (lane_index() % 4 == 0 && query < shape.t) delta[first_statistic + query] = deltas[m][half];
        }
    }
    __syncthreads();
    load_tile<QUERIES, D>(own_tile(0), head_of(qkv, shape, heads, head), first_query);
    load(first_tile);
    copies_wait<0>();
    __syncthreads();
    RowsInRegisters<M, D> q_rows(own_tile(0), first_row);
    Range seen = sight.keys_of(warp_query, 16 * M);
    float dq[M][D / 8][4], factor = factor_of(shape, bias);
    for_each_element<M, D / 8>([&](int m, int n, int i, int, int) { dq[m][n][i] = 0.0f; });
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < end_tile) load(tile + 1);
        // In steps, whose scores fit in registers.
#pragma unroll
        for (int step = 0; step < KEYS; step += STEP) {
            int first = stage_of(tile) * 2 * KEYS + step, first_key = tile * KEYS + step;
            if (!seen.has_any(first_key, STEP)) continue;
            Shared<bf16> k_tile = kv_rows(first, STEP), v_tile = kv_rows(first + KEYS, STEP);
            float p[M][N][4], ds[M][N][4];
            for_each_element<M, N>([&](int m, int n, int i, int, int) {
                p[m][n][i] = 0.0f;
                ds[m][n][i] = deltas[m][i / 2];
            });
            inner_products<M, N, D>(p, q_rows, k_tile);
            complete<true>(p, shape, bias, warp_query, first_key);
            inner_products<M, N, D>(ds, dy_rows, v_tile);
            for_each_element<M, N>([&](int m, int n, int i, int, int) {
                ds[m][n][i] *= probability(p[m][n][i], factor, log2_sums[m][i / 2]);
            });
            add_weighted_rows<M, N, D>(dq, ds, k_tile);
        }
    }
    __syncthreads();
    store_rows<M, D>(head_of(dqkv, shape, heads, head), warp_query, dq, shape.scale, own_tile(0), first_row);
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
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_dkv_d##D##_bf16(                       \
        bf16* dqkv, const bf16* dy, const bf16* qkv, const float* log_sum_exp, const float* delta,                     \
        const float* key_bias, int bias_stride, int t, int h, int kv_heads, int d, int causal, int window,             \
        float scale) {                                                                                                 \
        backward_dkv<DKV>(dqkv, dy, qkv, log_sum_exp, delta, key_bias, bias_stride,                                    \
                          {t, h, kv_heads, d, {t, causal, window}, scale});                                            \
    }                                                                                                                  \
    EXPORT(attention_backward_dkv_d##D##_bf16)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_backward_dq_d##D##_bf16(                        \
        bf16* dqkv, float* delta, const bf16* dy, const bf16* qkv, const bf16* y, const float* log_sum_exp,            \
        const float* key_bias, int bias_stride, int t, int h, int kv_heads, int d, int causal, int window,             \
        float scale) {                                                                                                 \
        backward_dq<DQ>(dqkv, delta, dy, qkv, y, log_sum_exp, key_bias, bias_stride,                                   \
                        {t, h, kv_heads, d, {t, causal, window}, scale});                                              \
    }                                                                                                                  \
    EXPORT(attention_backward_dq_d##D##_bf16)

#define LIST(...) __VA_ARGS__
KERNELS(64, LIST(64, 2, 64, RowsInRegisters<2, 64>), LIST(64, 2, 32), LIST(64, 2, 32))
KERNELS(128, LIST(128, 2, 32, RowsInShared<2, 128>), LIST(128, 1, 32), LIST(128, 1, 32))
