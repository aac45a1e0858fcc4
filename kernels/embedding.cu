// Token and position embedding, all in f32: the residual stream starts from the master weights.
//
// embedding_forward: x (n, c) = scale token (v, c)[id] + position (., c)[first_position + row % t]; positions are optional.
// embedding_backward_token: dtoken[ids[u]] += scale dx over the rows order[starts[u] .. starts[u + 1]], in that order, for each
//   of num_ids different ids; the host sorts rows by id, so that no two blocks share a row of dtoken.
// embedding_backward_position: dposition (., c)[first_position + time] += the sum over b of dx (b, t, c), in order.
#include "common.cuh"

extern "C" __global__ void embedding_forward(float* x, const unsigned* ids, const float* token, const float* position,
                                             int n, int t, int c, int first_position, float scale) {
    int chunks = (c + 7) / 8;
    unsigned long long index = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    size_t row = index / chunks;
    int column = static_cast<int>(index % chunks) * 8, left = c - column;
    if (row >= static_cast<size_t>(n)) return;
    Eight values = load8(token + static_cast<size_t>(ids[row]) * c + column, left);
    Eight places = position ? load8(position + (first_position + row % t) * c + column, left) : Eight{};
#pragma unroll
    for (int j = 0; j < 8; ++j) values.x[j] = scale * values.x[j] + places.x[j];
    store8(x + row * c + column, values, left);
}
EXPORT(embedding_forward)

extern "C" __global__ void embedding_backward_token(float* dtoken, const float* dx, const unsigned* ids,
                                                    const unsigned* starts, const unsigned* order, int num_ids, int c,
                                                    float scale) {
    int which = blockIdx.x;
    if (which >= num_ids) return;
    unsigned first = starts[which], end = starts[which + 1];
    for (int column = threadIdx.x * 8; column < c; column += blockDim.x * 8) {
        int left = c - column;
        float* into = dtoken + static_cast<size_t>(ids[which]) * c + column;
        Eight sum = load8(into, left);
        for (unsigned i = first; i < end; ++i) {
            Eight gradient = load8(dx + static_cast<size_t>(order[i]) * c + column, left);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum.x[j] += scale * gradient.x[j];
        }
        store8(into, sum, left);
    }
}
EXPORT(embedding_backward_token)

extern "C" __global__ void embedding_backward_position(float* dposition, const float* dx, int b, int t, int c,
                                                       int first_position) {
    int chunks = (c + 7) / 8;
    unsigned long long index = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    size_t time = index / chunks;
    int column = static_cast<int>(index % chunks) * 8, left = c - column;
    if (time >= static_cast<size_t>(t)) return;
    float* into = dposition + (first_position + time) * c + column;
    Eight sum = load8(into, left);
    for (int row = 0; row < b; ++row) {
        Eight gradient = load8(dx + (static_cast<size_t>(row) * t + time) * c + column, left);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum.x[j] += gradient.x[j];
    }
    store8(into, sum, left);
}
EXPORT(embedding_backward_position)
