// Means of token embeddings, and the products of every pair of them, on one GPU.
#include <cublas_v2.h>
#include <cuda_runtime.h>

__global__ void mean_rows(const float *table, int width, const int *ids, const int *starts, float *means) {
    int first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float sum = 0;
        for (int i = first; i < last; i++) sum += table[(size_t)ids[i] * width + column];
        means[(size_t)blockIdx.x * width + column] = sum / (last - first);
    }
}

template <typename T> static T *on_gpu(const T *values, size_t count) {
    T *copy = nullptr;
    if (cudaMalloc(&copy, count * sizeof(T)) != cudaSuccess) return nullptr;
    if (values) cudaMemcpy(copy, values, count * sizeof(T), cudaMemcpyHostToDevice);
    return copy;
}

extern "C" int gpu_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// Uploads the embedding table once; its address on the GPU is what embed() takes.
extern "C" float *upload(const float *table, size_t count) { return on_gpu(table, count); }

extern "C" int embed(const float *table, int width, const int *ids, const int *starts, int texts, float *means,
                     float *products) {
    size_t cells = (size_t)texts * width, pairs = (size_t)texts * texts;
    int *gpu_ids = on_gpu(ids, starts[texts]), *gpu_starts = on_gpu(starts, texts + 1);
    float *gpu_means = on_gpu<float>(nullptr, cells), *gpu_products = on_gpu<float>(nullptr, pairs);
    mean_rows<<<texts, 128>>>(table, width, gpu_ids, gpu_starts, gpu_means);

    cublasHandle_t handle;
    int status = cublasCreate(&handle);
    if (status == CUBLAS_STATUS_SUCCESS) {
        const float one = 1, zero = 0;
        status = cublasSgemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, texts, texts, width, &one, gpu_means, width, gpu_means,
                             width, &zero, gpu_products, texts);
        cublasDestroy(handle);
    }
    cudaMemcpy(means, gpu_means, cells * sizeof(float), cudaMemcpyDeviceToHost);
    cudaMemcpy(products, gpu_products, pairs * sizeof(float), cudaMemcpyDeviceToHost);
    cudaFree(gpu_ids), cudaFree(gpu_starts), cudaFree(gpu_means), cudaFree(gpu_products);
    return status ? status : cudaGetLastError();
}
