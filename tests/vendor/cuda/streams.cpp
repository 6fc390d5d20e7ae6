// Host memory and copies ("MEM"), streams ("STREAM") and events ("EVENT"): see entry.h for what the page names are.
#include "entry.h"

#include <cstdio>
#include <fstream>
#include <string>

using namespace cuda;

namespace {

// MEM, "API synchronization behavior": asynchronous with page-locked host memory; else it may return when it is done.
CUresult copy(Process& self, simulator::Address to, bool to_device, simulator::Address from, bool from_device,
              std::size_t count, CUstream stream) {
    if (self.space.is_device(to) != to_device || self.space.is_device(from) != from_device || to == 0 || from == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const Result pushed = self.streams.push(number(stream), simulator::copy_work(self.space, to, from, count));
    const bool pinned =
        (to_device || self.host.pinned(to, count)) && (from_device || self.host.pinned(from, count));
    if (!pushed.ok() || pinned) {
        return translate(pushed.fault);
    }
    return translate(self.streams.wait(number(stream), simulator::forever).fault);
}

// Whether this process may write there, as its own page tables have it.
bool writable(const void* at) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long from = 0;
        unsigned long to = 0;
        char access[5] = "";
        if (std::sscanf(line.c_str(), "%lx-%lx %4s", &from, &to, access) == 3 && number(at) >= from &&
            number(at) < to) {
            return access[1] == 'w';
        }
    }
    return false;
}

}  // namespace

extern "C" {

CUresult cuMemHostAlloc(void** out, size_t size, unsigned int flags) {
    CALL(context, {
        if (flags > (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return translate(self.host.allocate(size, out).fault);
    });
}

CUresult cuMemFreeHost(void* at) {
    CALL(context, { return translate(self.host.free(at).fault); });
}

// cuMemHostRegister, CU_MEMHOSTREGISTER_READ_ONLY: what the processor has mapped read-only wants this flag.
CUresult cuMemHostRegister(void* at, size_t size, unsigned int flags) {
    CALL(context, {
        const bool read_only = (flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
        if (!read_only && !writable(at)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return translate(self.host.enroll(at, size).fault);
    });
}

CUresult cuMemHostUnregister(void* at) {
    CALL(context, { return translate(self.host.withdraw(at).fault); });
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t count, CUstream stream) {
    CALL(context, { return copy(self, to, true, number(from), false, count, stream); });
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t count, CUstream stream) {
    CALL(context, { return copy(self, number(to), false, from, true, count, stream); });
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t count, CUstream stream) {
    CALL(context, { return copy(self, to, true, from, true, count, stream); });
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t count, CUstream stream) {
    CALL(context, {
        if (!self.space.is_device(at)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return translate(self.streams.push(number(stream), simulator::fill_work(self.space, at, value, count)).fault);
    });
}

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
    CALL(context, {
        if (flags > CU_STREAM_NON_BLOCKING) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        std::uint64_t name = 0;
        const Result result = simulator::create_stream(self, current_device(), &name);
        *stream = reinterpret_cast<CUstream>(name);
        return translate(result.fault);
    });
}

CUresult cuStreamDestroy(CUstream stream) {
    CALL(context, { return translate(simulator::destroy_stream(self, number(stream)).fault); });
}

CUresult cuStreamQuery(CUstream stream) {
    CALL(context, {
        bool done = false;
        const Result result = self.streams.query(number(stream), &done);
        return result.ok() && !done ? CUDA_ERROR_NOT_READY : translate(result.fault);
    });
}

CUresult cuStreamSynchronize(CUstream stream) {
    CALL(context, { return translate(self.streams.wait(number(stream), simulator::forever).fault); });
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int) {
    CALL(context, { return translate(self.streams.stream_wait(number(stream), number(event)).fault); });
}

CUresult cuEventCreate(CUevent* event, unsigned int flags) {
    CALL(context, {
        if ((flags & ~(CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)) != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        const std::uint64_t name = self.streams.create_event((flags & CU_EVENT_DISABLE_TIMING) == 0, true);
        *event = reinterpret_cast<CUevent>(name);
        return CUDA_SUCCESS;
    });
}

CUresult cuEventDestroy(CUevent event) {
    CALL(context, { return translate(self.streams.destroy_event(number(event)).fault); });
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL(context, { return translate(self.streams.record(number(event), number(stream)).fault); });
}

// EVENT: an event that was never recorded is done.
CUresult cuEventQuery(CUevent event) {
    CALL(context, {
        bool recorded = false;
        bool done = false;
        const Result result = self.streams.query_event(number(event), &recorded, &done);
        return result.ok() && recorded && !done ? CUDA_ERROR_NOT_READY : translate(result.fault);
    });
}

CUresult cuEventSynchronize(CUevent event) {
    CALL(context, { return translate(self.streams.wait_event(number(event), simulator::forever).fault); });
}

// EVENT: NOT_READY while one of them is not there yet, INVALID_HANDLE where one was never recorded or has no time.
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    CALL(context, {
        bool ready = false;
        const Result result = self.streams.elapsed(number(start), number(end), milliseconds, &ready);
        return result.ok() && !ready ? CUDA_ERROR_NOT_READY : translate(result.fault);
    });
}

}  // extern "C"
