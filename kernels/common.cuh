// What all kernels share: bfloat16, 16-byte accesses, warp operations, asynchronous copies, tensor cores.
//
// Every piece of inline assembly is here, and each has a twin that does the same on a CPU (emulator.h); `wrappers.cu` compares
// the two on a GPU. Kernels include nothing else and need no header of CUDA's.
//
// Conventions of all kernels: matrices are row-major; sizes are `int`, offsets `size_t`; gradients of parameters are
// added to, those of activations overwritten, unless a kernel says otherwise; sums run in an order that depends on sizes alone,
// so that two runs give the same bits.
#pragma once

#ifdef EMULATED
#include "emulator.h"

#include <cmath>
#else
#include <cstddef>
#include <cstdint>
#define EXPORT(kernel)
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;

// ---- Shared memory ----

#ifdef EMULATED
inline char* shared_memory() { return emulator::current->shared; }
#else
extern __shared__ __align__(128) char shared_bytes[];
__device__ __forceinline__ char* shared_memory() { return shared_bytes; }
#endif

// A part of the launch's shared memory whose indices are checked in tests.
template <class T>
struct Shared {
    T* data;
    int len;
    __device__ __forceinline__ T& operator[](int i) const {
#ifdef EMULATED
        if (i < 0 || i >= len) emulator::fail("index " + std::to_string(i) + " of " + std::to_string(len) + " in shared memory");
        emulator::require_shared(data + i, sizeof(T));
#endif
        return data[i];
    }
};

// `len` elements of shared memory, `offset` bytes from its start.
template <class T>
__device__ __forceinline__ Shared<T> shared(size_t offset, int len) {
    return {reinterpret_cast<T*>(shared_memory() + offset), len};
}

// ---- Numbers ----

// bfloat16: the upper half of a float.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float bits_to_float(unsigned bits) {
#ifdef EMULATED
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
#else
    return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ unsigned float_to_bits(float x) {
#ifdef EMULATED
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
#else
    return __float_as_uint(x);
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return bits_to_float(static_cast<unsigned>(x.bits) << 16); }

#ifdef EMULATED
// To nearest, ties to even; not a number stays one.
inline unsigned round_to_bf16(float x) {
    unsigned bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
#endif

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
#ifdef EMULATED
    return {static_cast<unsigned short>(round_to_bf16(x))};
#else
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

// Two bfloat16 in one register, `low` in its lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef EMULATED
    return round_to_bf16(low) | round_to_bf16(high) << 16;
#else
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ float low_of(unsigned packed) { return bits_to_float(packed << 16); }
__device__ __forceinline__ float high_of(unsigned packed) { return bits_to_float(packed & 0xffff0000u); }

// 2 to the power of x, to about 2 units in the last place.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef EMULATED
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
#define MINUS_INFINITY bits_to_float(0xff800000u)

// ---- Sixteen bytes at a time ----

// Eight numbers in registers.
struct Eight {
    float x[8];
};

struct alignas(16) Sixteen {
    unsigned word[4];
};

__device__ __forceinline__ Sixteen load16(const void* from) {
#ifdef EMULATED
    emulator::require_aligned(from, 16);
#endif
    return *static_cast<const Sixteen*>(from);
}

__device__ __forceinline__ void store16(void* to, Sixteen bytes) {
#ifdef EMULATED
    emulator::require_aligned(to, 16);
#endif
    *static_cast<Sixteen*>(to) = bytes;
}

__device__ __forceinline__ bool is_aligned(const void* pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}

__device__ __forceinline__ Eight load8_aligned(const float* from) {
    Sixteen a = load16(from), b = load16(from + 4);
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        eight.x[i] = bits_to_float(a.word[i]);
        eight.x[4 + i] = bits_to_float(b.word[i]);
    }
    return eight;
}

__device__ __forceinline__ Eight load8_aligned(const bf16* from) {
    Sixteen a = load16(from);
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        eight.x[2 * i] = low_of(a.word[i]);
        eight.x[2 * i + 1] = high_of(a.word[i]);
    }
    return eight;
}

__device__ __forceinline__ void store8_aligned(float* to, const Eight& eight) {
    Sixteen a, b;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        a.word[i] = float_to_bits(eight.x[i]);
        b.word[i] = float_to_bits(eight.x[4 + i]);
    }
    store16(to, a);
    store16(to + 4, b);
}

__device__ __forceinline__ void store8_aligned(bf16* to, const Eight& eight) {
    Sixteen a;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.word[i] = pack_bf16(eight.x[2 * i], eight.x[2 * i + 1]);
    store16(to, a);
}

// The next eight elements of which `left` exist (all, if more); the others are 0.
template <class T>
__device__ __forceinline__ Eight load8(const T* from, int left) {
    if (left >= 8 && is_aligned(from)) return load8_aligned(from);
    Eight eight;
#pragma unroll
    for (int i = 0; i < 8; ++i) eight.x[i] = i < left ? to_float(from[i]) : 0.0f;
    return eight;
}

template <class T>
__device__ __forceinline__ void store8(T* to, const Eight& eight, int left) {
    if (left >= 8 && is_aligned(to)) return store8_aligned(to, eight);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i < left) to[i] = from_float<T>(eight.x[i]);
    }
}

// The eight as the format holds them.
template <class T>
__device__ __forceinline__ Eight round8(const Eight& eight);
template <>
__device__ __forceinline__ Eight round8<float>(const Eight& eight) {
    return eight;
}
template <>
__device__ __forceinline__ Eight round8<bf16>(const Eight& eight) {
    Eight rounded;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        unsigned packed = pack_bf16(eight.x[2 * i], eight.x[2 * i + 1]);
        rounded.x[2 * i] = low_of(packed);
        rounded.x[2 * i + 1] = high_of(packed);
    }
    return rounded;
}

__device__ __forceinline__ void add8(Eight& sums, const Eight& terms) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.x[i] += terms.x[i];
}

// ---- Warps and blocks ----

__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }

// A number that all lanes of a warp have, of which the compiler may learn so, and keep what follows from it once for a warp.
__device__ __forceinline__ int uniform(int x) {
#ifdef EMULATED
    struct Payload {
        int x;
    } payload{x};
    emulator::collective("uniform", ALL_LANES, payload, [](Payload** lanes) {
        for (unsigned i = 0; i < 32; ++i) {
            if (lanes[i]->x != lanes[0]->x) emulator::fail("a number that is to be uniform is not");
        }
    });
    return x;
#else
    return __shfl_sync(ALL_LANES, x, 0);
#endif
}

// The value of the lane whose index differs by `bits`.
__device__ __forceinline__ float shuffle_xor(float x, int bits) {
#ifdef EMULATED
    struct Payload {
        float in, out;
        int bits;
    } payload{x, 0.0f, bits};
    emulator::collective("shuffle_xor", ALL_LANES, payload, [](Payload** lanes) {
        for (unsigned i = 0; i < 32; ++i) lanes[i]->out = lanes[i ^ lanes[i]->bits]->in;
    });
    return payload.out;
#else
    return __shfl_xor_sync(ALL_LANES, x, bits);
#endif
}

// The value of one lane.
__device__ __forceinline__ float shuffle(float x, int lane) {
#ifdef EMULATED
    struct Payload {
        float in, out;
        int lane;
    } payload{x, 0.0f, lane};
    emulator::collective("shuffle", ALL_LANES, payload, [](Payload** lanes) {
        for (unsigned i = 0; i < 32; ++i) lanes[i]->out = lanes[lanes[i]->lane % 32]->in;
    });
    return payload.out;
#else
    return __shfl_sync(ALL_LANES, x, lane);
#endif
}

// The lanes for which it is true, as bits.
__device__ __forceinline__ unsigned votes(bool is_true) {
#ifdef EMULATED
    struct Payload {
        bool in;
        unsigned out;
    } payload{is_true, 0};
    emulator::collective("votes", ALL_LANES, payload, [](Payload** lanes) {
        unsigned bits = 0;
        for (unsigned i = 0; i < 32; ++i) bits |= static_cast<unsigned>(lanes[i]->in) << i;
        for (unsigned i = 0; i < 32; ++i) lanes[i]->out = bits;
    });
    return payload.out;
#else
    return __ballot_sync(ALL_LANES, is_true);
#endif
}

// Orders what the lanes of a warp write to shared memory before with what they read after.
__device__ __forceinline__ void warp_barrier() {
#ifdef EMULATED
    struct Payload {
    } payload;
    emulator::collective("warp_barrier", ALL_LANES, payload, [](Payload**) {});
#else
    __syncwarp();
#endif
}

__device__ __forceinline__ float max_of(float a, float b) {
    // Not a number wins, unlike fmaxf's.
#ifdef EMULATED
    return a > b || a != a ? a : b;
#else
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#endif
}

// The sum over a warp, the same in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) x = max_of(x, shuffle_xor(x, bits));
    return x;
}

// The sum over a block, the same in every thread; `scratch` has a float for each warp, and one more, which only these sums
// and maxima use. They need no barrier before: the warps' floats are read between the two barriers, and the last one, which
// may still be read from the sum before, is written only behind the first.
__device__ __forceinline__ float block_sum(float x, Shared<float> scratch) {
    x = warp_sum(x);
    int warps = (blockDim.x + 31) / 32;
    if (lane_index() == 0) scratch[warp_index()] = x;
    __syncthreads();
    if (warp_index() == 0) {
        float total = warp_sum(lane_index() < warps ? scratch[lane_index()] : 0.0f);
        if (lane_index() == 0) scratch[warps] = total;
    }
    __syncthreads();
    return scratch[warps];
}

__device__ __forceinline__ float block_max(float x, Shared<float> scratch) {
    x = warp_max(x);
    int warps = (blockDim.x + 31) / 32;
    if (lane_index() == 0) scratch[warp_index()] = x;
    __syncthreads();
    if (warp_index() == 0) {
        float total = warp_max(lane_index() < warps ? scratch[lane_index()] : MINUS_INFINITY);
        if (lane_index() == 0) scratch[warps] = total;
    }
    __syncthreads();
    return scratch[warps];
}

// ---- Sums over the rows of a matrix ----
//
// Blocks of 256 threads: in x for 256 columns each, in y for slices of rows. `Walk` says what a thread of one adds up, and
// `store_slice` leaves the sums of the slice, in an order that depends on the sizes alone.

constexpr int COLUMN_THREADS = 32, ROW_THREADS = 8;

// Eight columns, of which `left` exist, of every ROW_THREADS-th row from `row` to `end`; no row where no column exists.
struct Walk {
    int column, left, row, end;
};

__device__ __forceinline__ Walk find_walk(int n, int columns) {
    int column = (blockIdx.x * COLUMN_THREADS + threadIdx.x % COLUMN_THREADS) * 8;
    int rows_per_slice = (n + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y);
    int start = blockIdx.y * rows_per_slice;
    int end = start + rows_per_slice < n ? start + rows_per_slice : n;
    int row = start + static_cast<int>(threadIdx.x) / COLUMN_THREADS;
    return {column, columns - column, row, column < columns ? end : 0};
}

// partial (slices, columns): the sums of this slice, of which each thread has its part. All of the block's shared memory.
__device__ __forceinline__ void store_slice(float* partial, Eight sums, const Walk& at, int columns) {
    Shared<float> all = shared<float>(0, ROW_THREADS * COLUMN_THREADS * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) all[threadIdx.x * 8 + j] = sums.x[j];
    __syncthreads();
    if (threadIdx.x < COLUMN_THREADS && at.left > 0) {
        for (int i = 1; i < ROW_THREADS; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sums.x[j] += all[(i * COLUMN_THREADS + threadIdx.x) * 8 + j];
        }
        store8(partial + static_cast<size_t>(blockIdx.y) * columns + at.column, sums, at.left);
    }
}

// ---- Asynchronous copies from global to shared memory ----

// Sixteen bytes, of which the first `valid` come from `from` and the others are 0; both addresses are aligned, and where
// nothing is valid `from` may lead anywhere. They are there for this thread after `copies_wait`, for the block after a
// barrier behind it.
__device__ __forceinline__ void copy16_async(void* to_shared, const void* from, int valid) {
#ifdef EMULATED
    emulator::copy_some_time(to_shared, from, 16, valid);
#else
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
#endif
}

// Four bytes, or 0 if it is not `valid`, when `from` may lead anywhere.
__device__ __forceinline__ void copy4_async(void* to_shared, const void* from, bool valid) {
#ifdef EMULATED
    emulator::copy_some_time(to_shared, from, 4, valid ? 4 : 0);
#else
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
#endif
}

// Closes the group of the copies since the last one.
__device__ __forceinline__ void copies_commit() {
#ifdef EMULATED
    emulator::close_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups but the last `PENDING`.
template <int PENDING>
__device__ __forceinline__ void copies_wait() {
#ifdef EMULATED
    emulator::wait_for_copies(PENDING);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Tensor cores ----
//
// Fragments of mma.m16n8k16 for bfloat16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and i = lane % 4,
//   a[0], a[1], a[2], a[3]: A at rows g, g+8, g, g+8 and columns 2i (a[0], a[1]) or 2i+8 (a[2], a[3]), two in each register
//   b[0], b[1]: B at rows 2i, 2i+1 and 2i+8, 2i+9 of column g
//   c[0], c[1], c[2], c[3]: C at (g, 2i), (g, 2i+1), (g+8, 2i), (g+8, 2i+1)

// `c += a b`.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMULATED
    struct Payload {
        float* c;
        const unsigned *a, *b;
    } payload{c, a, b};
    emulator::collective("mma_bf16", ALL_LANES, payload, [](Payload** lanes) {
        float a[16][16], b[16][8], products[16][8] = {};
        for (int lane = 0; lane < 32; ++lane) {
            int g = lane / 4, i = lane % 4;
            for (int r = 0; r < 4; ++r) {
                int row = g + (r % 2) * 8, column = 2 * i + (r / 2) * 8;
                a[row][column] = low_of(lanes[lane]->a[r]);
                a[row][column + 1] = high_of(lanes[lane]->a[r]);
            }
            for (int r = 0; r < 2; ++r) {
                b[2 * i + 8 * r][g] = low_of(lanes[lane]->b[r]);
                b[2 * i + 8 * r + 1][g] = high_of(lanes[lane]->b[r]);
            }
        }
        for (int row = 0; row < 16; ++row) {
            for (int k = 0; k < 16; ++k) {
                for (int column = 0; column < 8; ++column) products[row][column] += a[row][k] * b[k][column];
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int r = 0; r < 4; ++r) lanes[lane]->c[r] += products[lane / 4 + (r / 2) * 8][2 * (lane % 4) + r % 2];
        }
    });
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of 16-bit elements: lanes 8m .. 8m+7 give the addresses of the rows of matrix m, 16 bytes each; of
// matrix m a lane gets row lane / 4, columns 2 (lane % 4) and the next, in to[m].
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row) {
#ifdef EMULATED
    emulator::require_aligned(row, 16);
    emulator::require_shared(row, 16);
    struct Payload {
        unsigned* to;
        const void* row;
    } payload{to, row};
    emulator::collective("load_matrices", ALL_LANES, payload, [](Payload** lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int m = 0; m < 4; ++m) {
                const char* row = static_cast<const char*>(lanes[8 * m + lane / 4]->row);
                std::memcpy(&lanes[lane]->to[m], row + 4 * (lane % 4), 4);
            }
        }
    });
#else
    unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#endif
}

// The same with each matrix transposed: a lane gets rows 2 (lane % 4) and the next of column lane / 4.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], const void* row) {
#ifdef EMULATED
    emulator::require_aligned(row, 16);
    emulator::require_shared(row, 16);
    struct Payload {
        unsigned* to;
        const void* row;
    } payload{to, row};
    emulator::collective("load_matrices_transposed", ALL_LANES, payload, [](Payload** lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int m = 0; m < 4; ++m) {
                unsigned short pair[2];
                for (int i = 0; i < 2; ++i) {
                    const char* row = static_cast<const char*>(lanes[8 * m + 2 * (lane % 4) + i]->row);
                    std::memcpy(&pair[i], row + 2 * (lane / 4), 2);
                }
                lanes[lane]->to[m] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
            }
        }
    });
#else
    unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#endif
}

// ---- Attention ----

// The numbers first, first + 1, .. end - 1.
struct Range {
    int first, end;

    // Whether any of the `n` numbers from `start` on is among them.
    __device__ __forceinline__ bool has_any(int start, int n) const { return start < end && start + n > first; }
};

// Which keys the queries of a sequence see, as `ops/attention.rs` says; `window` is 0 where there is none.
struct Sight {
    int t, causal, window;

    __device__ __forceinline__ bool sees(int query, int key) const {
        bool near = !causal || (key <= query && (window == 0 || query - key < window));
        return near && query < t && key < t;
    }

    // The keys that at least one of the queries sees.
    __device__ __forceinline__ Range keys_of(int first_query, int queries) const {
        int first = window == 0 || first_query < window ? 0 : first_query - window + 1;
        return {first, causal && first_query + queries < t ? first_query + queries : t};
    }

    // The queries that see at least one of the keys.
    __device__ __forceinline__ Range queries_of(int first_key, int keys) const {
        int left = t - first_key;
        return {causal ? first_key : 0, window != 0 && keys - 1 + window < left ? first_key + keys - 1 + window : t};
    }

    // The keys that every one of the queries sees.
    __device__ __forceinline__ Range keys_of_all(int first_query, int queries) const {
        return {keys_of(first_query + queries - 1, 1).first, keys_of(first_query, 1).end};
    }

    // The queries that see every one of the keys.
    __device__ __forceinline__ Range queries_of_all(int first_key, int keys) const {
        return {queries_of(first_key + keys - 1, 1).first, queries_of(first_key, 1).end};
    }
};

// ---- Random bits ----

// The uniformly distributed 32 bits of an element of a stream, as `ops/random.rs` has them.
__device__ __forceinline__ unsigned mix32(unsigned x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    return x ^ (x >> 15);
}

__device__ __forceinline__ unsigned random_bits(unsigned long long key, unsigned long long index) {
    unsigned low = static_cast<unsigned>(index), high = static_cast<unsigned>(index >> 32);
    unsigned inner = mix32(low ^ static_cast<unsigned>(key));
    return mix32(inner ^ static_cast<unsigned>(key >> 32) ^ (high * 0x9e3779b1u));
}
