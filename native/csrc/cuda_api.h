// The part of the CUDA driver API that is used here, declared by us: nothing of NVIDIA's is needed to build. Names and
// layouts are those of cuda.h (CUDA 12 and 13, https://docs.nvidia.com/cuda/cuda-driver-api/); tests compare them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vnpu::cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUmemGenericAllocationHandle = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;

enum : int {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_NOT_READY = 600,
    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1,
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
    CU_MEM_ACCESS_FLAGS_PROT_READ = 1,
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
    CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DEFAULT = 0,
    CU_MEMHOSTALLOC_PORTABLE = 1,
    CU_MEMHOSTREGISTER_PORTABLE = 1,
    CU_MEMHOSTREGISTER_READ_ONLY = 8,
};

struct CUmemLocation {
    int type;  // first here, second on Ascend
    int id;
};
static_assert(sizeof(CUmemLocation) == 8);

struct CUmemAllocationProp {
    int type;
    int requestedHandleTypes;
    CUmemLocation location;
    void* win32HandleMetaData;
    struct {
        unsigned char compressionType;
        unsigned char gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
};
static_assert(sizeof(CUmemAllocationProp) == 32);
static_assert(offsetof(CUmemAllocationProp, requestedHandleTypes) == 4);
static_assert(offsetof(CUmemAllocationProp, location) == 8);
static_assert(offsetof(CUmemAllocationProp, win32HandleMetaData) == 16);
static_assert(offsetof(CUmemAllocationProp, allocFlags) == 24);

struct CUmemAccessDesc {
    CUmemLocation location;
    int flags;
};
static_assert(sizeof(CUmemAccessDesc) == 12);
static_assert(offsetof(CUmemAccessDesc, flags) == 8);

// One pointer for each function, filled by dlsym. `_v2` is what cuda.h makes of the plain name.
struct Functions {
    CUresult (*cuInit)(unsigned flags);
    CUresult (*cuGetErrorName)(CUresult error, const char** name);
    CUresult (*cuGetErrorString)(CUresult error, const char** text);
    CUresult (*cuDeviceGet)(CUdevice* device, int ordinal);
    CUresult (*cuDevicePrimaryCtxRetain)(CUcontext* context, CUdevice device);
    CUresult (*cuCtxPushCurrent_v2)(CUcontext context);
    CUresult (*cuCtxPopCurrent_v2)(CUcontext* context);
    CUresult (*cuMemGetInfo_v2)(std::size_t* free, std::size_t* total);
    CUresult (*cuMemGetAllocationGranularity)(std::size_t* granularity, const CUmemAllocationProp* prop, int option);
    CUresult (*cuMemAddressReserve)(CUdeviceptr* va, std::size_t size, std::size_t alignment, CUdeviceptr hint,
                                    unsigned long long flags);
    CUresult (*cuMemAddressFree)(CUdeviceptr va, std::size_t size);
    CUresult (*cuMemCreate)(CUmemGenericAllocationHandle* handle, std::size_t size, const CUmemAllocationProp* prop,
                            unsigned long long flags);
    CUresult (*cuMemRelease)(CUmemGenericAllocationHandle handle);
    CUresult (*cuMemMap)(CUdeviceptr va, std::size_t size, std::size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags);
    CUresult (*cuMemUnmap)(CUdeviceptr va, std::size_t size);
    CUresult (*cuMemSetAccess)(CUdeviceptr va, std::size_t size, const CUmemAccessDesc* access, std::size_t count);
    CUresult (*cuMemExportToShareableHandle)(void* shareable, CUmemGenericAllocationHandle handle, int type,
                                             unsigned long long flags);
    CUresult (*cuMemImportFromShareableHandle)(CUmemGenericAllocationHandle* handle, void* shareable, int type);
    CUresult (*cuMemHostAlloc)(void** base, std::size_t size, unsigned flags);
    CUresult (*cuMemFreeHost)(void* base);
    CUresult (*cuMemHostRegister_v2)(void* base, std::size_t size, unsigned flags);
    CUresult (*cuMemHostUnregister)(void* base);
    CUresult (*cuMemcpyHtoDAsync_v2)(CUdeviceptr to, const void* from, std::size_t size, CUstream stream);
    CUresult (*cuMemcpyDtoHAsync_v2)(void* to, CUdeviceptr from, std::size_t size, CUstream stream);
    CUresult (*cuMemcpyDtoDAsync_v2)(CUdeviceptr to, CUdeviceptr from, std::size_t size, CUstream stream);
    CUresult (*cuMemsetD8Async)(CUdeviceptr to, unsigned char value, std::size_t size, CUstream stream);
    CUresult (*cuStreamCreate)(CUstream* stream, unsigned flags);
    CUresult (*cuStreamDestroy_v2)(CUstream stream);
    CUresult (*cuStreamQuery)(CUstream stream);
    CUresult (*cuStreamWaitEvent)(CUstream stream, CUevent event, unsigned flags);
    CUresult (*cuEventCreate)(CUevent* event, unsigned flags);
    CUresult (*cuEventDestroy_v2)(CUevent event);
    CUresult (*cuEventRecord)(CUevent event, CUstream stream);
    CUresult (*cuEventQuery)(CUevent event);
    CUresult (*cuEventElapsedTime)(float* milliseconds, CUevent from, CUevent to);
};

}  // namespace vnpu::cuda
