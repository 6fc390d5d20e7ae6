// Host memory (11-02), copies (11-03), streams (06) and events (07): see entry.h for what the chapter numbers are.
#include "entry.h"

using namespace ascend;

namespace {

// 11-03 aclrtMemcpyAsync: asynchronous with pinned host memory; with other memory it returns when the copy is done.
Result copy(Process& self, void* to, std::size_t room, const void* from, std::size_t count, aclrtMemcpyKind kind,
            aclrtStream stream) {
    const bool to_device = self.space.is_device(number(to));
    const bool from_device = self.space.is_device(number(from));
    if (kind == ACL_MEMCPY_HOST_TO_HOST) {
        return refuse(Fault::not_supported, "no copy from host to host");
    }
    const bool right = (kind == ACL_MEMCPY_HOST_TO_DEVICE && to_device && !from_device) ||
                       (kind == ACL_MEMCPY_DEVICE_TO_HOST && !to_device && from_device) ||
                       (kind == ACL_MEMCPY_DEVICE_TO_DEVICE && to_device && from_device);
    if (to == nullptr || from == nullptr || count == 0 || count > room || !right) {
        return refuse(Fault::invalid_value, "the addresses do not fit the kind, or the bytes not the room");
    }
    const Result pushed =
        self.streams.push(number(stream), simulator::copy_work(self.space, number(to), number(from), count));
    const bool pinned = (to_device || self.host.pinned(number(to), count)) &&
                        (from_device || self.host.pinned(number(from), count));
    return !pushed.ok() || pinned ? pushed : self.streams.wait(number(stream), simulator::forever);
}

}  // namespace

extern "C" {

aclError aclrtMallocHost(void** out, size_t size) { CALL(true, { return self.host.allocate(size, out); }); }

aclError aclrtFreeHost(void* at) { CALL(true, { return self.host.free(at); }); }

aclError aclrtHostRegister(void* at, uint64_t size, aclrtHostRegisterType type, void** device) {
    CALL(true, {
        if (type != ACL_HOST_REGISTER_MAPPED || device == nullptr || number(at) % 4096 != 0) {
            return refuse(Fault::invalid_value, "type MAPPED, an address on a 4 KiB page, and where to put the result");
        }
        *device = at;
        return self.host.enroll(at, size);
    });
}

aclError aclrtHostRegisterV2(void* at, uint64_t size, uint32_t flag) {
    CALL(true, {
        if ((flag & ~static_cast<uint32_t>(ACL_HOST_REG_MAPPED | ACL_HOST_REG_PINNED)) != 0 || flag == 0 ||
            number(at) % 4096 != 0) {
            return refuse(Fault::invalid_value, "flags MAPPED or PINNED, an address on a 4 KiB page");
        }
        return self.host.enroll(at, size);
    });
}

aclError aclrtHostUnregister(void* at) { CALL(true, { return self.host.withdraw(at); }); }

aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
    CALL(true, { return copy(self, to, room, from, count, kind, stream); });
}

aclError aclrtMemsetAsync(void* at, size_t room, int32_t value, size_t count, aclrtStream stream) {
    CALL(true, {
        if (at == nullptr || count == 0 || count > room) {
            return refuse(Fault::invalid_value, "the bytes do not fit the room");
        }
        return self.streams.push(number(stream), simulator::fill_work(self.space, number(at), value, count));
    });
}

aclError aclrtCreateStream(aclrtStream* stream) {
    CALL(true, {
        std::uint64_t name = 0;
        const Result result = simulator::create_stream(self, current_device, &name);
        *stream = handle(name);
        return result;
    });
}

aclError aclrtDestroyStream(aclrtStream stream) {
    CALL(true, { return simulator::destroy_stream(self, number(stream)); });
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
    CALL(true, { return self.streams.wait(number(stream), timeout < 0 ? simulator::forever : timeout); });
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
    CALL(true, { return self.streams.wait(number(stream), simulator::forever); });
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
    CALL(true, {
        bool done = false;
        const Result result = self.streams.query(number(stream), &done);
        *status = done ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
        return result;
    });
}

// 07 aclrtCreateEventWithFlag: without ACL_EVENT_SYNC no stream waits for it; without ACL_EVENT_TIME_LINE no time.
aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flag) {
    CALL(true, {
        const uint32_t known = ACL_EVENT_TIME_LINE | ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS;
        if (flag == 0 || (flag & ~known) != 0) {
            return refuse(Fault::invalid_value, "no such flags");
        }
        *event = handle(self.streams.create_event((flag & ACL_EVENT_TIME_LINE) != 0, (flag & ACL_EVENT_SYNC) != 0));
        return {};
    });
}

aclError aclrtCreateEvent(aclrtEvent* event) {
    CALL(true, {
        *event = handle(self.streams.create_event(true, true));
        return {};
    });
}

aclError aclrtDestroyEvent(aclrtEvent event) { CALL(true, { return self.streams.destroy_event(number(event)); }); }

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
    CALL(true, { return self.streams.record(number(event), number(stream)); });
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
    CALL(true, { return self.streams.stream_wait(number(stream), number(event)); });
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
    CALL(true, {
        bool recorded = false;
        bool done = false;
        const Result result = self.streams.query_event(number(event), &recorded, &done);
        *status = done ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
        return result;
    });
}

aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t timeout) {
    const aclError code =
        call(__func__, true, [&](Process& self) {
            return self.streams.wait_event(number(event), timeout < 0 ? simulator::forever : timeout);
        });
    return code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT ? ACL_ERROR_RT_EVENT_SYNC_TIMEOUT : code;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
    CALL(true, { return self.streams.wait_event(number(event), simulator::forever); });
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent start, aclrtEvent end) {
    CALL(true, {
        bool ready = false;
        const Result result = self.streams.elapsed(number(start), number(end), ms, &ready);
        return result.ok() && !ready ? refuse(Fault::invalid_value, "an event is not there yet") : result;
    });
}

}  // extern "C"
