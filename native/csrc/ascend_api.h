// The part of AscendCL's runtime that is used here, declared by us: nothing of CANN is needed to build. Names and
// layouts are those of acl/acl_rt.h (CANN 8.1 and later, "Memory management" of the AscendCL API reference on
// hiascend.com; the torch-npu wheel carries the header); tests compare them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vnpu::ascend {

using aclError = int;
using aclrtDrvMemHandle = void*;
using aclrtStream = void*;
using aclrtEvent = void*;

enum : int {
    ACL_ERROR_NONE = 0,
    ACL_ERROR_REPEAT_INITIALIZE = 100002,
    ACL_ERROR_API_NOT_SUPPORT = 200001,
    ACL_ERROR_FEATURE_UNSUPPORTED = 200006,
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_REPEATED_INIT = 207015,
    ACL_ERROR_RT_STREAM_SYNC_TIMEOUT = 507046,
    ACL_ERROR_RT_EVENT_SYNC_TIMEOUT = 507047,
    ACL_MEM_HANDLE_TYPE_NONE = 0,
    ACL_MEM_ALLOCATION_TYPE_PINNED = 0,
    ACL_HBM_MEM = 1,
    ACL_HBM_MEM_HUGE = 4,
    ACL_MEM_LOCATION_TYPE_HOST = 0,
    ACL_MEM_LOCATION_TYPE_DEVICE = 1,
    ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
    ACL_RT_MEM_ACCESS_FLAGS_READ = 1,
    ACL_RT_MEM_ACCESS_FLAGS_READWRITE = 3,
    ACL_RT_VMM_EXPORT_FLAG_DEFAULT = 0,  // importers must be on the white-list
    ACL_HOST_REGISTER_MAPPED = 0,
    ACL_HOST_REG_PINNED = 0x10000000,
    ACL_MEMCPY_HOST_TO_DEVICE = 1,
    ACL_MEMCPY_DEVICE_TO_HOST = 2,
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3,
    ACL_EVENT_SYNC = 1,
    ACL_EVENT_CAPTURE_STREAM_PROGRESS = 2,
    ACL_EVENT_TIME_LINE = 8,
    ACL_EVENT_RECORDED_STATUS_NOT_READY = 0,
    ACL_EVENT_RECORDED_STATUS_COMPLETE = 1,
};

struct aclrtMemLocation {
    std::uint32_t id;  // first here, second on CUDA
    int type;
};
static_assert(sizeof(aclrtMemLocation) == 8);
static_assert(offsetof(aclrtMemLocation, type) == 4);

struct aclrtPhysicalMemProp {
    int handleType;
    int allocationType;
    int memAttr;
    aclrtMemLocation location;
    std::uint64_t reserve;
};
static_assert(sizeof(aclrtPhysicalMemProp) == 32);
static_assert(offsetof(aclrtPhysicalMemProp, allocationType) == 4);
static_assert(offsetof(aclrtPhysicalMemProp, memAttr) == 8);
static_assert(offsetof(aclrtPhysicalMemProp, location) == 12);
static_assert(offsetof(aclrtPhysicalMemProp, reserve) == 24);

struct aclrtMemAccessDesc {
    int flags;
    aclrtMemLocation location;
    std::uint8_t rsv[12];
};
static_assert(sizeof(aclrtMemAccessDesc) == 24);
static_assert(offsetof(aclrtMemAccessDesc, location) == 4);
static_assert(offsetof(aclrtMemAccessDesc, rsv) == 12);

// One pointer for each function, filled by dlsym.
struct Functions {
    aclError (*aclInit)(const char* configPath);
    aclError (*aclrtSetDevice)(std::int32_t device);
    aclError (*aclrtGetDevice)(std::int32_t* device);
    aclError (*aclrtGetMemInfo)(int attr, std::size_t* free, std::size_t* total);
    aclError (*aclrtReserveMemAddress)(void** va, std::size_t size, std::size_t alignment, void* expected,
                                       std::uint64_t flags);
    aclError (*aclrtReleaseMemAddress)(void* va);
    aclError (*aclrtMallocPhysical)(aclrtDrvMemHandle* handle, std::size_t size, const aclrtPhysicalMemProp* prop,
                                    std::uint64_t flags);
    aclError (*aclrtFreePhysical)(aclrtDrvMemHandle handle);
    aclError (*aclrtMapMem)(void* va, std::size_t size, std::size_t offset, aclrtDrvMemHandle handle,
                            std::uint64_t flags);
    aclError (*aclrtUnmapMem)(void* va);
    aclError (*aclrtMemGetAllocationGranularity)(aclrtPhysicalMemProp* prop, int option, std::size_t* granularity);
    aclError (*aclrtMemExportToShareableHandle)(aclrtDrvMemHandle handle, int handleType, std::uint64_t flags,
                                                std::uint64_t* shareable);
    aclError (*aclrtMemSetPidToShareableHandle)(std::uint64_t shareable, std::int32_t* pids, std::size_t count);
    aclError (*aclrtMemImportFromShareableHandle)(std::uint64_t shareable, std::int32_t device,
                                                  aclrtDrvMemHandle* handle);
    aclError (*aclrtDeviceGetBareTgid)(std::int32_t* pid);
    aclError (*aclrtMallocHost)(void** base, std::size_t size);
    aclError (*aclrtFreeHost)(void* base);
    aclError (*aclrtHostUnregister)(void* base);
    aclError (*aclrtMemcpyAsync)(void* to, std::size_t room, const void* from, std::size_t size, int kind,
                                 aclrtStream stream);
    aclError (*aclrtMemsetAsync)(void* to, std::size_t room, std::int32_t value, std::size_t size, aclrtStream stream);
    aclError (*aclrtCreateStream)(aclrtStream* stream);
    aclError (*aclrtDestroyStream)(aclrtStream stream);
    aclError (*aclrtSynchronizeStreamWithTimeout)(aclrtStream stream, std::int32_t milliseconds);
    aclError (*aclrtCreateEventWithFlag)(aclrtEvent* event, std::uint32_t flag);
    aclError (*aclrtDestroyEvent)(aclrtEvent event);
    aclError (*aclrtRecordEvent)(aclrtEvent event, aclrtStream stream);
    aclError (*aclrtStreamWaitEvent)(aclrtStream stream, aclrtEvent event);
    aclError (*aclrtQueryEventStatus)(aclrtEvent event, int* status);
    aclError (*aclrtSynchronizeEventWithTimeout)(aclrtEvent event, std::int32_t milliseconds);
    aclError (*aclrtEventElapsedTime)(float* milliseconds, aclrtEvent from, aclrtEvent to);
    // Null where the library has none.
    aclError (*aclrtHostRegister)(void* base, std::uint64_t size, int type, void** on_device);
    aclError (*aclrtHostRegisterV2)(void* base, std::uint64_t size, std::uint32_t flag);
    aclError (*aclrtMemSetAccess)(void* va, std::size_t size, aclrtMemAccessDesc* access, std::size_t count);
    const char* (*aclGetRecentErrMsg)();
};

}  // namespace vnpu::ascend
