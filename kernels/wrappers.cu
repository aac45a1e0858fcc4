// What each wrapper of common.cuh does, for the test that holds a card's against their twins (`gpu/wrappers.rs`): a
// block of one warp, inputs and outputs per lane, 32-bit words as they are. Nothing else launches these.
#include "common.cuh"

// mma: c (blocks, 32, 4) += a (blocks, 32, 4) b (blocks, 32, 2), fragment by fragment.
extern "C" __global__ void wrapped_mma(float* c, const unsigned* a, const unsigned* b) {
    size_t fragment = static_cast<size_t>(blockIdx.x) * 32 + threadIdx.x;
    float sums[4];
    unsigned left[4], right[2];
    for (int i = 0; i < 4; ++i) {
        sums[i] = c[fragment * 4 + i];
        left[i] = a[fragment * 4 + i];
    }
    for (int i = 0; i < 2; ++i) right[i] = b[fragment * 2 + i];
    mma_bf16(sums, left, right);
    for (int i = 0; i < 4; ++i) c[fragment * 4 + i] = sums[i];
}
EXPORT(wrapped_mma)

// load_matrices: of x (32, 4), 16 bytes in each row, a lane gives the address of row `rows[lane]`; to y (32, 4), and
// transposed to the second y (32, 4).
extern "C" __global__ void wrapped_loads(unsigned* y, const unsigned* x, const int* rows) {
    int lane = lane_index();
    Shared<Sixteen> words = shared<Sixteen>(0, 32);
    words[lane] = load16(x + lane * 4);
    warp_barrier();
    unsigned plain[4], transposed[4];
    load_matrices(plain, &words[rows[lane]]);
    load_matrices_transposed(transposed, &words[rows[lane]]);
    for (int i = 0; i < 4; ++i) {
        y[lane * 4 + i] = plain[i];
        y[128 + lane * 4 + i] = transposed[i];
    }
}
EXPORT(wrapped_loads)

// copies: a lane copies `valid[lane]` bytes of its 16 of x (32, 4), closes the group, copies its word of z (32), if
// there is any valid byte, and closes that; y (32, 5) is what is there after waiting for the first group, and for both.
// What was there before is ones.
extern "C" __global__ void wrapped_copies(unsigned* y, const unsigned* x, const unsigned* z, const int* valid) {
    int lane = lane_index();
    Shared<Sixteen> sixteens = shared<Sixteen>(0, 32);
    Shared<unsigned> words = shared<unsigned>(512, 32);
    sixteens[lane] = {{~0u, ~0u, ~0u, ~0u}};
    words[lane] = ~0u;
    // Where nothing is copied, from where no memory is.
    size_t nowhere = valid[lane] > 0 ? 0 : static_cast<size_t>(1) << 40;
    copy16_async(&sixteens[lane], x + lane * 4 + nowhere, valid[lane]);
    copies_commit();
    copy4_async(&words[lane], z + lane + nowhere, valid[lane] > 0);
    copies_commit();
    copies_wait<1>();
    Sixteen first = sixteens[lane];
    copies_wait<0>();
    for (int i = 0; i < 4; ++i) y[lane * 5 + i] = first.word[i];
    y[lane * 5 + 4] = words[lane];
}
EXPORT(wrapped_copies)

// lanes: of x (32): the lane's that differs in one bit, for five bits, and in all; that of `lanes[lane]`; the votes for
// being above 0, also as a number that is uniform; the warp's sum and maximum: y (32, 11).
extern "C" __global__ void wrapped_lanes(unsigned* y, const float* x, const int* lanes) {
    int lane = lane_index();
    float mine = x[lane];
    unsigned* row = y + lane * 11;
    for (int i = 0; i < 6; ++i) row[i] = float_to_bits(shuffle_xor(mine, i < 5 ? 1 << i : 31));
    row[6] = float_to_bits(shuffle(mine, lanes[lane]));
    row[7] = votes(mine > 0.0f);
    row[8] = uniform(row[7]);
    row[9] = float_to_bits(warp_sum(mine));
    row[10] = float_to_bits(warp_max(mine));
}
EXPORT(wrapped_lanes)

// numbers: of x and z (blocks * 32): x as a bfloat16, both as two of them, each of these as a float again, the larger
// of x and z, 2 to the power of x: y (blocks * 32, 6).
extern "C" __global__ void wrapped_numbers(unsigned* y, const float* x, const float* z) {
    size_t i = static_cast<size_t>(blockIdx.x) * 32 + threadIdx.x;
    unsigned packed = pack_bf16(x[i], z[i]);
    unsigned* row = y + i * 6;
    row[0] = from_float<bf16>(x[i]).bits;
    row[1] = packed;
    row[2] = float_to_bits(low_of(packed));
    row[3] = float_to_bits(high_of(packed));
    row[4] = float_to_bits(max_of(x[i], z[i]));
    row[5] = float_to_bits(exp2_fast(x[i]));
}
EXPORT(wrapped_numbers)

// random: the bits of elements `first` and following of a stream: y (32).
extern "C" __global__ void wrapped_random(unsigned* y, unsigned long long key, unsigned long long first) {
    y[threadIdx.x] = random_bits(key, first + threadIdx.x);
}
EXPORT(wrapped_random)
