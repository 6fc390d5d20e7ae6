// The CUDA driver API, opened at run time (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html). Chunks
// are shared as POSIX descriptors. Every call is made in the device's primary context, which torch uses as well.
#include "cuda.h"

#include <fcntl.h>

#include <cerrno>
#include <limits>
#include <mutex>
#include <string>
#include <thread>

#include <unistd.h>

#include "cuda_api.h"
#include "deadline.h"
#include "library.h"
#include "pinned.h"
#include "remedies.h"
#include "vendor.h"

namespace vnpu {

namespace {

using namespace cuda;

constexpr LibraryChoice choice{"cuda", "libcuda.so.1", "VNPU_LIBCUDA",
                               "install NVIDIA's driver, or give the container the GPU (docker --gpus)",
                               "driver 525 (CUDA 12)"};

class Cuda {
   public:
    explicit Cuda(const std::string& path);

    // The one library of this process. Throws DriverError.
    static const Cuda& opened(const std::string& path);

    void check(CUresult result, const char* call, const char* function) const {
        if (result != CUDA_SUCCESS) {
            fail(result, call, function);
        }
    }

    const Library library;
    Functions api{};

   private:
    [[noreturn]] void fail(CUresult result, const char* call, const char* function) const;
};

Cuda::Cuda(const std::string& path) : library(choice, path) {
#define VNPU_NEED(function) library.need(api.function, #function)
    VNPU_NEED(cuInit);
    VNPU_NEED(cuGetErrorName);
    VNPU_NEED(cuGetErrorString);
    VNPU_NEED(cuDeviceGet);
    VNPU_NEED(cuDevicePrimaryCtxRetain);
    VNPU_NEED(cuCtxPushCurrent_v2);
    VNPU_NEED(cuCtxPopCurrent_v2);
    VNPU_NEED(cuMemGetInfo_v2);
    VNPU_NEED(cuMemGetAllocationGranularity);
    VNPU_NEED(cuMemAddressReserve);
    VNPU_NEED(cuMemAddressFree);
    VNPU_NEED(cuMemCreate);
    VNPU_NEED(cuMemRelease);
    VNPU_NEED(cuMemMap);
    VNPU_NEED(cuMemUnmap);
    VNPU_NEED(cuMemSetAccess);
    VNPU_NEED(cuMemExportToShareableHandle);
    VNPU_NEED(cuMemImportFromShareableHandle);
    VNPU_NEED(cuMemHostAlloc);
    VNPU_NEED(cuMemFreeHost);
    VNPU_NEED(cuMemHostRegister_v2);
    VNPU_NEED(cuMemHostUnregister);
    VNPU_NEED(cuMemcpyHtoDAsync_v2);
    VNPU_NEED(cuMemcpyDtoHAsync_v2);
    VNPU_NEED(cuMemcpyDtoDAsync_v2);
    VNPU_NEED(cuMemsetD8Async);
    VNPU_NEED(cuStreamCreate);
    VNPU_NEED(cuStreamDestroy_v2);
    VNPU_NEED(cuStreamQuery);
    VNPU_NEED(cuStreamWaitEvent);
    VNPU_NEED(cuEventCreate);
    VNPU_NEED(cuEventDestroy_v2);
    VNPU_NEED(cuEventRecord);
    VNPU_NEED(cuEventQuery);
    VNPU_NEED(cuEventElapsedTime);
#undef VNPU_NEED
    check(api.cuInit(0), "open_driver", "cuInit");
}

const Cuda& Cuda::opened(const std::string& path) {
    static std::mutex mutex;
    static std::unique_ptr<const Cuda> one;
    const std::lock_guard lock(mutex);
    if (one == nullptr) {
        one = std::make_unique<const Cuda>(path);
    } else {
        one->library.check_same(path);
    }
    return *one;
}

void Cuda::fail(CUresult result, const char* call, const char* function) const {
    const char* name = nullptr;
    const char* text = nullptr;
    api.cuGetErrorName(result, &name);
    api.cuGetErrorString(result, &text);
    const Remedy* const known = cuda_remedy(result);
    const std::string fallback = known != nullptr ? known->name : "CUresult";
    throw DriverError(call, result, name != nullptr ? name : fallback,
                      std::string(function) + ": " + (text != nullptr ? text : "failed"),
                      known != nullptr ? known->what : "see NVIDIA's description of this number");
}

class CudaVendor final : public Vendor {
   public:
    CudaVendor(const Cuda& cuda, int device) : cuda_(cuda), api_(cuda.api) {
        cuda_.check(api_.cuDeviceGet(&device_, device), "open_driver", "cuDeviceGet");
        // Kept for the life of the process: mappings outlive the driver that made them.
        cuda_.check(api_.cuDevicePrimaryCtxRetain(&context_, device_), "open_driver", "cuDevicePrimaryCtxRetain");
        prop_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
        prop_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;  // at creation, or never exported
        prop_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
    }

    std::string_view name() const override { return "cuda"; }
    std::string_view library() const override { return cuda_.library.path(); }
    Sharing sharing() const override { return Sharing::descriptor; }

    std::int64_t enter() override {
        cuda_.check(api_.cuCtxPushCurrent_v2(context_), "enter", "cuCtxPushCurrent");
        return 0;
    }
    void leave(std::int64_t) noexcept override {
        CUcontext popped = nullptr;
        api_.cuCtxPopCurrent_v2(&popped);
    }

    std::size_t granularity() override;
    std::size_t free_bytes() override;

    Address reserve(std::size_t size, Address hint) override;
    void release(Address va, std::size_t size) override;
    Raw create(std::size_t size) override;
    void destroy(Raw chunk) override;
    void map(Address va, std::size_t size, Raw chunk) override;
    void unmap(Address va, std::size_t size) override;
    void access(std::span<const Piece> pieces) override;

    std::int32_t share_id() override { return ::getpid(); }
    Shareable export_handle(Raw chunk) override;
    void permit(Shareable, std::span<const std::int32_t>) override {}
    Raw import_handle(Shareable shareable) override;

    Address pin(std::size_t size) override;
    void unpin(Address base) override;
    void register_host(Address base, std::size_t size) override;
    void unregister_host(Address base) override;

    Raw create_stream() override;
    void destroy_stream(Raw stream) override;
    void copy(Raw stream, const CopyEntry& entry, CopyKind kind) override;
    void zero(Raw stream, Address va, std::size_t size) override;
    bool wait_stream(Raw stream, double timeout_s) override;
    Raw create_event() override;
    void destroy_event(Raw event) override;
    void record(Raw event, Raw stream) override;
    void stream_wait(Raw stream, Raw event) override;
    bool event_done(Raw event) override;
    bool wait_event(Raw event, double timeout_s) override;
    double elapsed(Raw from, Raw to) override;

   private:
    static CUstream stream_of(Raw raw) { return reinterpret_cast<CUstream>(raw); }
    static CUevent event_of(Raw raw) { return reinterpret_cast<CUevent>(raw); }
    bool ready(CUresult result, const char* call, const char* function) const;

    const Cuda& cuda_;
    const Functions& api_;
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
    CUmemAllocationProp prop_{};
};

std::size_t CudaVendor::granularity() {
    std::size_t granularity = 0;
    cuda_.check(api_.cuMemGetAllocationGranularity(&granularity, &prop_, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                "open_driver", "cuMemGetAllocationGranularity");
    return granularity;
}

std::size_t CudaVendor::free_bytes() {
    std::size_t free = 0;
    std::size_t total = 0;
    cuda_.check(api_.cuMemGetInfo_v2(&free, &total), "free_bytes", "cuMemGetInfo");
    return free;
}

Address CudaVendor::reserve(std::size_t size, Address hint) {
    CUdeviceptr va = 0;
    cuda_.check(api_.cuMemAddressReserve(&va, size, 0, hint, 0), "reserve", "cuMemAddressReserve");
    return va;
}

void CudaVendor::release(Address va, std::size_t size) {
    cuda_.check(api_.cuMemAddressFree(va, size), "release", "cuMemAddressFree");
}

Raw CudaVendor::create(std::size_t size) {
    CUmemGenericAllocationHandle handle = 0;
    cuda_.check(api_.cuMemCreate(&handle, size, &prop_, 0), "create", "cuMemCreate");
    return handle;
}

void CudaVendor::destroy(Raw chunk) { cuda_.check(api_.cuMemRelease(chunk), "destroy", "cuMemRelease"); }

void CudaVendor::map(Address va, std::size_t size, Raw chunk) {
    cuda_.check(api_.cuMemMap(va, size, 0, chunk, 0), "map", "cuMemMap");
}

void CudaVendor::unmap(Address va, std::size_t size) {
    cuda_.check(api_.cuMemUnmap(va, size), "unmap", "cuMemUnmap");
}

// One call for neighbours: it costs more than the mapping itself (kvcached's bench_vmm: 36 us against 1.5 us a page).
void CudaVendor::access(std::span<const Piece> pieces) {
    for (std::size_t i = 0; i < pieces.size();) {
        const Piece& first = pieces[i];
        Address end = first.va;
        for (; i < pieces.size() && pieces[i].va == end && pieces[i].writable == first.writable; ++i) {
            end += pieces[i].size;
        }
        const CUmemAccessDesc access{{CU_MEM_LOCATION_TYPE_DEVICE, device_},
                                     first.writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ};
        cuda_.check(api_.cuMemSetAccess(first.va, end - first.va, &access, 1), "map", "cuMemSetAccess");
    }
}

Shareable CudaVendor::export_handle(Raw chunk) {
    int fd = -1;
    cuda_.check(api_.cuMemExportToShareableHandle(&fd, chunk, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                "export_handle", "cuMemExportToShareableHandle");
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    return static_cast<Shareable>(fd);
}

Raw CudaVendor::import_handle(Shareable shareable) {
    const int fd = shareable <= std::numeric_limits<int>::max() ? static_cast<int>(shareable) : -1;
    if (::fcntl(fd, F_GETFD) < 0) {
        throw errno_error("import_handle", EBADF, "descriptor " + std::to_string(fd) + " cannot be used",
                          "pass the descriptor that came from export_handle");
    }
    CUmemGenericAllocationHandle handle = 0;
    void* const passed = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
    cuda_.check(api_.cuMemImportFromShareableHandle(&handle, passed, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                "import_handle", "cuMemImportFromShareableHandle");
    return handle;
}

Address CudaVendor::pin(std::size_t size) {
    void* base = nullptr;
    cuda_.check(api_.cuMemHostAlloc(&base, size, CU_MEMHOSTALLOC_PORTABLE), "pin", "cuMemHostAlloc");
    return reinterpret_cast<Address>(base);
}

void CudaVendor::unpin(Address base) {
    cuda_.check(api_.cuMemFreeHost(reinterpret_cast<void*>(base)), "unpin", "cuMemFreeHost");
}

// Memory that is mapped read-only (host masters are) needs a flag of its own, which not every device knows.
void CudaVendor::register_host(Address base, std::size_t size) {
    const unsigned flags = CU_MEMHOSTREGISTER_PORTABLE | (mapped_writable(base) ? 0 : CU_MEMHOSTREGISTER_READ_ONLY);
    cuda_.check(api_.cuMemHostRegister_v2(reinterpret_cast<void*>(base), size, flags), "register_host",
                "cuMemHostRegister");
}

void CudaVendor::unregister_host(Address base) {
    cuda_.check(api_.cuMemHostUnregister(reinterpret_cast<void*>(base)), "unregister_host", "cuMemHostUnregister");
}

Raw CudaVendor::create_stream() {
    CUstream stream = nullptr;
    cuda_.check(api_.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "create_stream", "cuStreamCreate");
    return reinterpret_cast<Raw>(stream);
}

void CudaVendor::destroy_stream(Raw stream) {
    cuda_.check(api_.cuStreamDestroy_v2(stream_of(stream)), "destroy_stream", "cuStreamDestroy");
}

void CudaVendor::copy(Raw stream, const CopyEntry& entry, CopyKind kind) {
    const auto [destination, source, length] = entry;
    const CUstream on = stream_of(stream);
    switch (kind) {
        case CopyKind::host_to_device:
            cuda_.check(api_.cuMemcpyHtoDAsync_v2(destination, reinterpret_cast<const void*>(source), length, on),
                        "copy_async", "cuMemcpyHtoDAsync");
            break;
        case CopyKind::device_to_host:
            cuda_.check(api_.cuMemcpyDtoHAsync_v2(reinterpret_cast<void*>(destination), source, length, on),
                        "copy_async", "cuMemcpyDtoHAsync");
            break;
        case CopyKind::device_to_device:
            cuda_.check(api_.cuMemcpyDtoDAsync_v2(destination, source, length, on), "copy_async", "cuMemcpyDtoDAsync");
            break;
    }
}

void CudaVendor::zero(Raw stream, Address va, std::size_t size) {
    cuda_.check(api_.cuMemsetD8Async(va, 0, size, stream_of(stream)), "wipe", "cuMemsetD8Async");
}

bool CudaVendor::ready(CUresult result, const char* call, const char* function) const {
    if (result != CUDA_ERROR_NOT_READY) {
        cuda_.check(result, call, function);
    }
    return result == CUDA_SUCCESS;
}

// CUDA waits for ever or not at all, so a wait with a deadline asks again and again, ever less often.
template <class Ask>
bool ask_until(double timeout_s, Ask&& ask) {
    const auto deadline = deadline_after(timeout_s);
    auto pause = std::chrono::microseconds(5);
    while (!ask()) {
        if (std::chrono::steady_clock::now() >= deadline) {
            return false;
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::microseconds(500));
    }
    return true;
}

bool CudaVendor::wait_stream(Raw stream, double timeout_s) {
    return ask_until(timeout_s, [&] { return ready(api_.cuStreamQuery(stream_of(stream)), "wait_stream", "cuStreamQuery"); });
}

Raw CudaVendor::create_event() {
    CUevent event = nullptr;
    cuda_.check(api_.cuEventCreate(&event, CU_EVENT_DEFAULT), "create_event", "cuEventCreate");
    return reinterpret_cast<Raw>(event);
}

void CudaVendor::destroy_event(Raw event) {
    cuda_.check(api_.cuEventDestroy_v2(event_of(event)), "destroy_event", "cuEventDestroy");
}

void CudaVendor::record(Raw event, Raw stream) {
    cuda_.check(api_.cuEventRecord(event_of(event), stream_of(stream)), "record", "cuEventRecord");
}

void CudaVendor::stream_wait(Raw stream, Raw event) {
    cuda_.check(api_.cuStreamWaitEvent(stream_of(stream), event_of(event), 0), "stream_wait", "cuStreamWaitEvent");
}

bool CudaVendor::event_done(Raw event) {
    return ready(api_.cuEventQuery(event_of(event)), "event_done", "cuEventQuery");
}

bool CudaVendor::wait_event(Raw event, double timeout_s) {
    return ask_until(timeout_s, [&] { return ready(api_.cuEventQuery(event_of(event)), "wait_event", "cuEventQuery"); });
}

double CudaVendor::elapsed(Raw from, Raw to) {
    float milliseconds = 0;
    cuda_.check(api_.cuEventElapsedTime(&milliseconds, event_of(from), event_of(to)), "elapsed", "cuEventElapsedTime");
    return static_cast<double>(milliseconds) / 1e3;
}

}  // namespace

std::unique_ptr<Driver> open_cuda_driver(int device, const DriverOptions& options) {
    const Cuda& cuda = Cuda::opened(options.library);
    return make_vendor_driver(std::make_unique<CudaVendor>(cuda, device), device, options.limit);
}

}  // namespace vnpu
