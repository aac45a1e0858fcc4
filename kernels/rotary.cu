// Rotary position embedding in place: in each of the first `heads` heads of a token (row_len elements), pairs of the first
// 2 `pairs` dimensions of d are turned: (x, y) -> (x cos - y sin, y cos + x sin), with sin times `direction`: 1 forward, -1
// backward. cos and sin are (positions, pairs) f32; token r has position first_position + r % t. A pair is i and i + pairs,
// or 2i and 2i + 1 where `interleaved`. A thread turns eight pairs.
#include "common.cuh"

template <class T>
__device__ __forceinline__ void rotate(T* qkv, const float* cos, const float* sin, int n, int t, int first_position,
                                       int heads, int d, int row_len, int pairs, int interleaved, float direction) {
    int chunks = (pairs + 7) / 8;
    unsigned long long index = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int first = static_cast<int>(index % chunks) * 8;
    index /= chunks;
    int head = static_cast<int>(index % heads);
    size_t token = index / heads;
    if (token >= static_cast<size_t>(n)) return;
    int left = pairs - first;
    size_t angle = (first_position + token % t) * pairs + first;
    Eight cosines = load8(cos + angle, left), sines = load8(sin + angle, left);
    T* start = qkv + token * row_len + static_cast<size_t>(head) * d;
    if (!interleaved) {
        Eight x = load8(start + first, left), y = load8(start + pairs + first, left), turned_x, turned_y;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float s = direction * sines.x[j];
            turned_x.x[j] = x.x[j] * cosines.x[j] - y.x[j] * s;
            turned_y.x[j] = y.x[j] * cosines.x[j] + x.x[j] * s;
        }
        store8(start + first, turned_x, left);
        store8(start + pairs + first, turned_y, left);
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int rest = 2 * left - 8 * half;
            if (rest <= 0) break;
            T* four_pairs = start + 2 * first + 8 * half;
            Eight xy = load8(four_pairs, rest), turned;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float c = cosines.x[4 * half + j], s = direction * sines.x[4 * half + j];
                turned.x[2 * j] = xy.x[2 * j] * c - xy.x[2 * j + 1] * s;
                turned.x[2 * j + 1] = xy.x[2 * j + 1] * c + xy.x[2 * j] * s;
            }
            store8(four_pairs, turned, rest);
        }
    }
}

extern "C" __global__ void rotate_f32(float* qkv, const float* cos, const float* sin, int n, int t, int first_position,
                                      int heads, int d, int row_len, int pairs, int interleaved, float direction) {
    rotate(qkv, cos, sin, n, t, first_position, heads, d, row_len, pairs, interleaved, direction);
}
EXPORT(rotate_f32)

extern "C" __global__ void rotate_bf16(bf16* qkv, const float* cos, const float* sin, int n, int t, int first_position,
                                       int heads, int d, int row_len, int pairs, int interleaved, float direction) {
    rotate(qkv, cos, sin, n, t, first_position, heads, d, row_len, pairs, interleaved, direction);
}
EXPORT(rotate_bf16)
