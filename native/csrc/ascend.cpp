// AscendCL's runtime, opened at run time (CANN's API reference, "Memory management": aclrtReserveMemAddress and
// following). Chunks are shared as 64-bit numbers that only white-listed processes can import.
#include "ascend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "ascend_api.h"
#include "library.h"
#include "remedies.h"
#include "vendor.h"

namespace vnpu {

namespace {

using namespace ascend;

constexpr LibraryChoice choice{"ascend", "libascendcl.so", "VNPU_ASCENDCL", "install CANN and source its set_env.sh",
                               "CANN 8.1"};
// aclrtReserveMemAddress: a page type once (8.0: as the chunks'), reserved now, "0 is recommended" (CANN 8.5 and later);
// vllm-ascend's allocator passes 0 for huge chunks on every release.
constexpr std::uint64_t reservation_flags = 0;
constexpr int out_of_device = -1;

class Ascend {
   public:
    explicit Ascend(const std::string& path);

    // The one library of this process. Throws DriverError.
    static const Ascend& opened(const std::string& path);

    void check(aclError result, const char* call, const char* function) const {
        if (result != ACL_ERROR_NONE) {
            fail(result, call, function);
        }
    }

    const Library library;
    Functions api{};

   private:
    [[noreturn]] void fail(aclError result, const char* call, const char* function) const;
};

Ascend::Ascend(const std::string& path) : library(choice, path) {
#define VNPU_NEED(function) library.need(api.function, #function)
    VNPU_NEED(aclInit);
    VNPU_NEED(aclrtSetDevice);
    VNPU_NEED(aclrtGetDevice);
    VNPU_NEED(aclrtGetMemInfo);
    VNPU_NEED(aclrtReserveMemAddress);
    VNPU_NEED(aclrtReleaseMemAddress);
    VNPU_NEED(aclrtMallocPhysical);
    VNPU_NEED(aclrtFreePhysical);
    VNPU_NEED(aclrtMapMem);
    VNPU_NEED(aclrtUnmapMem);
    VNPU_NEED(aclrtMemGetAllocationGranularity);
    VNPU_NEED(aclrtMemExportToShareableHandle);
    VNPU_NEED(aclrtMemSetPidToShareableHandle);
    VNPU_NEED(aclrtMemImportFromShareableHandle);
    VNPU_NEED(aclrtDeviceGetBareTgid);
    VNPU_NEED(aclrtMallocHost);
    VNPU_NEED(aclrtFreeHost);
    VNPU_NEED(aclrtHostUnregister);
    VNPU_NEED(aclrtMemcpyAsync);
    VNPU_NEED(aclrtMemsetAsync);
    VNPU_NEED(aclrtCreateStream);
    VNPU_NEED(aclrtDestroyStream);
    VNPU_NEED(aclrtSynchronizeStreamWithTimeout);
    VNPU_NEED(aclrtCreateEventWithFlag);
    VNPU_NEED(aclrtDestroyEvent);
    VNPU_NEED(aclrtRecordEvent);
    VNPU_NEED(aclrtStreamWaitEvent);
    VNPU_NEED(aclrtQueryEventStatus);
    VNPU_NEED(aclrtSynchronizeEventWithTimeout);
    VNPU_NEED(aclrtEventElapsedTime);
#undef VNPU_NEED
    library.want(api.aclrtHostRegisterV2, "aclrtHostRegisterV2");
    if (api.aclrtHostRegisterV2 == nullptr) {
        library.need(api.aclrtHostRegister, "aclrtHostRegister");
    }
    library.want(api.aclrtMemSetAccess, "aclrtMemSetAccess");
    library.want(api.aclGetRecentErrMsg, "aclGetRecentErrMsg");
    const aclError result = api.aclInit(nullptr);
    if (result != ACL_ERROR_REPEAT_INITIALIZE && result != ACL_ERROR_RT_REPEATED_INIT) {  // torch_npu may have done it
        check(result, "open_driver", "aclInit");
    }
}

const Ascend& Ascend::opened(const std::string& path) {
    static std::mutex mutex;
    static std::unique_ptr<const Ascend> one;
    const std::lock_guard lock(mutex);
    if (one == nullptr) {
        one = std::make_unique<const Ascend>(path);
    } else {
        one->library.check_same(path);
    }
    return *one;
}

void Ascend::fail(aclError result, const char* call, const char* function) const {
    const char* const recent = api.aclGetRecentErrMsg != nullptr ? api.aclGetRecentErrMsg() : nullptr;
    const std::string text = recent != nullptr ? recent : "";
    const Remedy* const known = ascend_remedy(result);
    const Remedy* const closer = ascend_message_remedy(text);
    const Remedy* const told = closer != nullptr ? closer : known;
    throw DriverError(call, result, known != nullptr ? known->name : "aclError",
                      std::string(function) + ": " + (text.empty() ? "failed" : text),
                      told != nullptr ? told->what : "see CANN's description of this number");
}

class AscendVendor final : public Vendor {
   public:
    AscendVendor(const Ascend& ascend, int device) : ascend_(ascend), api_(ascend.api), device_(device) {
        prop_.handleType = ACL_MEM_HANDLE_TYPE_NONE;
        prop_.allocationType = ACL_MEM_ALLOCATION_TYPE_PINNED;
        prop_.memAttr = ACL_HBM_MEM_HUGE;
        prop_.location = {static_cast<std::uint32_t>(device), ACL_MEM_LOCATION_TYPE_DEVICE};
    }

    std::string_view name() const override { return "ascend"; }
    std::string_view library() const override { return ascend_.library.path(); }
    Sharing sharing() const override { return Sharing::handle; }

    std::int64_t enter() override;
    void leave(std::int64_t entered) noexcept override;

    std::size_t granularity() override;
    std::size_t free_bytes() override;

    Address reserve(std::size_t size, Address hint) override;
    void release(Address va, std::size_t size) override;
    Raw create(std::size_t size) override;
    void destroy(Raw chunk) override;
    void map(Address va, std::size_t size, Raw chunk) override;
    void unmap(Address va, std::size_t size) override;
    void access(std::span<const Piece> pieces) override;

    std::int32_t share_id() override;
    Shareable export_handle(Raw chunk) override;
    void permit(Shareable shareable, std::span<const std::int32_t> share_ids) override;
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
    static void* pointer(std::uint64_t raw) { return reinterpret_cast<void*>(raw); }
    static Raw raw(void* pointer) { return reinterpret_cast<Raw>(pointer); }
    void allow(const Piece& piece);

    const Ascend& ascend_;
    const Functions& api_;
    const int device_;
    aclrtPhysicalMemProp prop_{};
};

// A thread's device is its own; where it is another (torch works on several), it is put back.
std::int64_t AscendVendor::enter() {
    std::int32_t current = out_of_device;
    if (api_.aclrtGetDevice(&current) != ACL_ERROR_NONE) {  // no device was ever set on this thread
        current = out_of_device;
    }
    if (current != device_) {
        ascend_.check(api_.aclrtSetDevice(device_), "enter", "aclrtSetDevice");
    }
    return current;
}

void AscendVendor::leave(std::int64_t entered) noexcept {
    if (entered != device_ && entered != out_of_device) {
        api_.aclrtSetDevice(static_cast<std::int32_t>(entered));
    }
}

std::size_t AscendVendor::granularity() {
    std::size_t granularity = 0;
    ascend_.check(api_.aclrtMemGetAllocationGranularity(&prop_, ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM, &granularity),
                  "open_driver", "aclrtMemGetAllocationGranularity");
    return granularity;
}

std::size_t AscendVendor::free_bytes() {
    std::size_t free = 0;
    std::size_t total = 0;
    ascend_.check(api_.aclrtGetMemInfo(ACL_HBM_MEM, &free, &total), "free_bytes", "aclrtGetMemInfo");
    return free;
}

Address AscendVendor::reserve(std::size_t size, Address hint) {
    void* va = nullptr;
    ascend_.check(api_.aclrtReserveMemAddress(&va, size, 0, pointer(hint), reservation_flags), "reserve",
                  "aclrtReserveMemAddress");
    return raw(va);
}

void AscendVendor::release(Address va, std::size_t) {
    ascend_.check(api_.aclrtReleaseMemAddress(pointer(va)), "release", "aclrtReleaseMemAddress");
}

Raw AscendVendor::create(std::size_t size) {
    aclrtDrvMemHandle handle = nullptr;
    ascend_.check(api_.aclrtMallocPhysical(&handle, size, &prop_, 0), "create", "aclrtMallocPhysical");
    return raw(handle);
}

void AscendVendor::destroy(Raw chunk) {
    ascend_.check(api_.aclrtFreePhysical(pointer(chunk)), "destroy", "aclrtFreePhysical");
}

void AscendVendor::map(Address va, std::size_t size, Raw chunk) {
    ascend_.check(api_.aclrtMapMem(pointer(va), size, 0, pointer(chunk), 0), "map", "aclrtMapMem");
}

void AscendVendor::unmap(Address va, std::size_t) {
    ascend_.check(api_.aclrtUnmapMem(pointer(va)), "unmap", "aclrtUnmapMem");
}

void AscendVendor::access(std::span<const Piece> pieces) {
    for (const Piece& piece : pieces) {
        allow(piece);
    }
}

// Mapping lets the device read and write already (vllm-ascend's camem never asks); the vendor's sample asks all the
// same. So only a read-only mapping depends on the answer.
void AscendVendor::allow(const Piece& piece) {
    aclError result = ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
    if (api_.aclrtMemSetAccess != nullptr) {
        aclrtMemAccessDesc access{};
        access.flags = piece.writable ? ACL_RT_MEM_ACCESS_FLAGS_READWRITE : ACL_RT_MEM_ACCESS_FLAGS_READ;
        access.location = prop_.location;
        result = api_.aclrtMemSetAccess(pointer(piece.va), piece.size, &access, 1);
    }
    const bool unknown = result == ACL_ERROR_RT_FEATURE_NOT_SUPPORT || result == ACL_ERROR_API_NOT_SUPPORT ||
                         result == ACL_ERROR_FEATURE_UNSUPPORTED;
    if (!unknown || !piece.writable) {
        ascend_.check(result, "map", "aclrtMemSetAccess");
    }
}

// In a container too, the number by which the bare host knows this process; getpid() would be another.
std::int32_t AscendVendor::share_id() {
    std::int32_t pid = 0;
    ascend_.check(api_.aclrtDeviceGetBareTgid(&pid), "share_id", "aclrtDeviceGetBareTgid");
    return pid;
}

Shareable AscendVendor::export_handle(Raw chunk) {
    std::uint64_t shareable = 0;
    ascend_.check(api_.aclrtMemExportToShareableHandle(pointer(chunk), ACL_MEM_HANDLE_TYPE_NONE,
                                                       ACL_RT_VMM_EXPORT_FLAG_DEFAULT, &shareable),
                  "export_handle", "aclrtMemExportToShareableHandle");
    return shareable;
}

void AscendVendor::permit(Shareable shareable, std::span<const std::int32_t> share_ids) {
    std::vector<std::int32_t> pids(share_ids.begin(), share_ids.end());
    ascend_.check(api_.aclrtMemSetPidToShareableHandle(shareable, pids.data(), pids.size()), "permit",
                  "aclrtMemSetPidToShareableHandle");
}

Raw AscendVendor::import_handle(Shareable shareable) {
    aclrtDrvMemHandle handle = nullptr;
    ascend_.check(api_.aclrtMemImportFromShareableHandle(shareable, device_, &handle), "import_handle",
                  "aclrtMemImportFromShareableHandle");
    return raw(handle);
}

Address AscendVendor::pin(std::size_t size) {
    void* base = nullptr;
    ascend_.check(api_.aclrtMallocHost(&base, size), "pin", "aclrtMallocHost");
    return raw(base);
}

void AscendVendor::unpin(Address base) {
    ascend_.check(api_.aclrtFreeHost(pointer(base)), "unpin", "aclrtFreeHost");
}

// V2 locks the pages, all that copies need. The older call maps them for kernels and fails on CANN 8.5: only without V2.
void AscendVendor::register_host(Address base, std::size_t size) {
    if (api_.aclrtHostRegisterV2 != nullptr) {
        ascend_.check(api_.aclrtHostRegisterV2(pointer(base), size, ACL_HOST_REG_PINNED), "register_host",
                      "aclrtHostRegisterV2");
        return;
    }
    void* on_device = nullptr;  // where kernels would reach it; copies do not need that
    ascend_.check(api_.aclrtHostRegister(pointer(base), size, ACL_HOST_REGISTER_MAPPED, &on_device), "register_host",
                  "aclrtHostRegister");
}

void AscendVendor::unregister_host(Address base) {
    ascend_.check(api_.aclrtHostUnregister(pointer(base)), "unregister_host", "aclrtHostUnregister");
}

Raw AscendVendor::create_stream() {
    aclrtStream stream = nullptr;
    ascend_.check(api_.aclrtCreateStream(&stream), "create_stream", "aclrtCreateStream");
    return raw(stream);
}

void AscendVendor::destroy_stream(Raw stream) {
    ascend_.check(api_.aclrtDestroyStream(pointer(stream)), "destroy_stream", "aclrtDestroyStream");
}

void AscendVendor::copy(Raw stream, const CopyEntry& entry, CopyKind kind) {
    constexpr int kinds[] = {ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_DEVICE_TO_DEVICE};
    ascend_.check(api_.aclrtMemcpyAsync(pointer(entry.destination), entry.length, pointer(entry.source), entry.length,
                                        kinds[static_cast<int>(kind)], pointer(stream)),
                  "copy_async", "aclrtMemcpyAsync");
}

void AscendVendor::zero(Raw stream, Address va, std::size_t size) {
    ascend_.check(api_.aclrtMemsetAsync(pointer(va), size, 0, size, pointer(stream)), "wipe", "aclrtMemsetAsync");
}

// At least one millisecond: 0 is not among what CANN promises to understand.
std::int32_t milliseconds(double seconds) {
    constexpr double most = std::numeric_limits<std::int32_t>::max();
    return static_cast<std::int32_t>(std::clamp(std::ceil(seconds * 1e3), 1.0, most));
}

bool AscendVendor::wait_stream(Raw stream, double timeout_s) {
    const aclError result = api_.aclrtSynchronizeStreamWithTimeout(pointer(stream), milliseconds(timeout_s));
    if (result == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {
        return false;
    }
    ascend_.check(result, "wait_stream", "aclrtSynchronizeStreamWithTimeout");
    return true;
}

Raw AscendVendor::create_event() {
    constexpr std::uint32_t uses = ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE;
    aclrtEvent event = nullptr;
    ascend_.check(api_.aclrtCreateEventWithFlag(&event, uses), "create_event", "aclrtCreateEventWithFlag");
    return raw(event);
}

void AscendVendor::destroy_event(Raw event) {
    ascend_.check(api_.aclrtDestroyEvent(pointer(event)), "destroy_event", "aclrtDestroyEvent");
}

void AscendVendor::record(Raw event, Raw stream) {
    ascend_.check(api_.aclrtRecordEvent(pointer(event), pointer(stream)), "record", "aclrtRecordEvent");
}

void AscendVendor::stream_wait(Raw stream, Raw event) {
    ascend_.check(api_.aclrtStreamWaitEvent(pointer(stream), pointer(event)), "stream_wait", "aclrtStreamWaitEvent");
}

bool AscendVendor::event_done(Raw event) {
    int status = ACL_EVENT_RECORDED_STATUS_NOT_READY;
    ascend_.check(api_.aclrtQueryEventStatus(pointer(event), &status), "event_done", "aclrtQueryEventStatus");
    return status == ACL_EVENT_RECORDED_STATUS_COMPLETE;
}

bool AscendVendor::wait_event(Raw event, double timeout_s) {
    const aclError result = api_.aclrtSynchronizeEventWithTimeout(pointer(event), milliseconds(timeout_s));
    if (result == ACL_ERROR_RT_EVENT_SYNC_TIMEOUT) {
        return false;
    }
    ascend_.check(result, "wait_event", "aclrtSynchronizeEventWithTimeout");
    return true;
}

double AscendVendor::elapsed(Raw from, Raw to) {
    float taken = 0;
    ascend_.check(api_.aclrtEventElapsedTime(&taken, pointer(from), pointer(to)), "elapsed", "aclrtEventElapsedTime");
    return static_cast<double>(taken) / 1e3;
}

}  // namespace

std::unique_ptr<Driver> open_ascend_driver(int device, const DriverOptions& options) {
    const Ascend& ascend = Ascend::opened(options.library);
    return make_vendor_driver(std::make_unique<AscendVendor>(ascend, device), device, options.limit);
}

}  // namespace vnpu
