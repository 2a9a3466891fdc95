// Just enough of CUDA C++ for a CPU to run `normalize` of terramind_cube/kernels/cuda_vector.py:
// the threads of a block are threads of the process, and blocks come one after another.
#include <pthread.h>
#include <string.h>

#define __global__
#define __device__ static
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

struct uint4 {
    unsigned int x, y, z, w;
} __attribute__((aligned(16)));
struct Dimensions {
    unsigned int x;
};

static thread_local Dimensions threadIdx, blockIdx;
static Dimensions gridDim;
static pthread_barrier_t barrier;

static inline void __syncthreads() { pthread_barrier_wait(&barrier); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
    return uint4{x, y, z, w};
}
static inline unsigned int __float_as_uint(float value) {
    unsigned int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline unsigned int atomicOr(unsigned int* place, unsigned int bits) {
    return __atomic_fetch_or(place, bits, __ATOMIC_RELAXED);
}
