// Launches the kernel that comes before this text; one launch at a time.
struct Arguments {
    const uint4* x;
    const Index* corners;
    const float* constants;
    uint4* out;
    Index groups;
    int rows, columns, height, width, nodata;
};
static Arguments given;

static void* run_thread(void* index) {
    threadIdx.x = (unsigned int)(size_t)index;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        normalize(given.x, given.corners, given.constants, given.out, given.groups, given.rows,
                  given.columns, given.height, given.width, given.nodata);
        __syncthreads();
    }
    return 0;
}

extern "C" void launch(unsigned int blocks, Arguments arguments) {
    pthread_t threads[THREADS];
    given = arguments;
    gridDim.x = blocks;
    pthread_barrier_init(&barrier, 0, THREADS);
    for (size_t i = 0; i < THREADS; ++i) pthread_create(&threads[i], 0, run_thread, (void*)i);
    for (size_t i = 0; i < THREADS; ++i) pthread_join(threads[i], 0);
    pthread_barrier_destroy(&barrier);
}
