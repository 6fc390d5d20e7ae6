#include "vendor_streams.h"

#include <cerrno>

namespace vnpu {

namespace {

constexpr double for_ever = 1e9;  // seconds

}  // namespace

VendorStreams::~VendorStreams() {
    attempt([this] {  // the device may be gone, and with it what was on it
        const Entered entered(vendor_);
        for (const Raw stream : streams_.take_all()) {
            attempt([&] { vendor_.wait_stream(stream, for_ever); });
            attempt([&] { vendor_.destroy_stream(stream); });
        }
        for (const auto& event : events_.take_all()) {
            attempt([&] { vendor_.destroy_event(event->raw); });
        }
    });
}

Stream VendorStreams::create_stream() {
    const Entered entered(vendor_);
    return streams_.add(vendor_.create_stream());
}

void VendorStreams::destroy_stream(Stream stream) {
    const Entered entered(vendor_);
    streams_.remove("destroy_stream", stream, [this](Raw raw) {
        vendor_.wait_stream(raw, for_ever);
        vendor_.destroy_stream(raw);
    });
}

void VendorStreams::copy(Stream stream, std::span<const CopyEntry> entries, CopyKind kind) {
    const Entered entered(vendor_);
    auto on = streams_.use("copy_async", stream);
    check_(entries, kind);
    for (const CopyEntry& entry : entries) {
        if (entry.length != 0) {
            vendor_.copy(*on, entry, kind);
        }
    }
}

void VendorStreams::zero(Stream stream, std::span<const CopyEntry> ranges) {
    const Entered entered(vendor_);
    auto on = streams_.use("zero_async", stream);
    check_(ranges, CopyKind::host_to_device);
    for (const CopyEntry& range : ranges) {
        if (range.length != 0) {
            vendor_.zero(*on, range.destination, range.length);
        }
    }
}

bool VendorStreams::wait_stream(Stream stream, double timeout_s) {
    const Entered entered(vendor_);
    auto on = streams_.use("wait_stream", stream);
    return vendor_.wait_stream(*on, timeout_s);
}

Event VendorStreams::create_event() {
    const Entered entered(vendor_);
    return events_.add(std::make_shared<EventState>(vendor_.create_event()));
}

void VendorStreams::destroy_event(Event event) {
    const Entered entered(vendor_);
    events_.remove("destroy_event", event, [this](const auto& gone) { vendor_.destroy_event(gone->raw); });
}

void VendorStreams::record(Event event, Stream stream) {
    const Entered entered(vendor_);
    auto of = events_.use("record", event);
    auto on = streams_.use("record", stream);
    vendor_.record((*of)->raw, *on);
    (*of)->recorded = true;
}

void VendorStreams::stream_wait(Stream stream, Event event) {
    const Entered entered(vendor_);
    auto of = events_.use("stream_wait", event);
    auto on = streams_.use("stream_wait", stream);
    vendor_.stream_wait(*on, recorded("stream_wait", of));
}

bool VendorStreams::event_done(Event event) {
    const Entered entered(vendor_);
    auto of = events_.use("event_done", event);
    return vendor_.event_done(recorded("event_done", of));
}

bool VendorStreams::wait_event(Event event, double timeout_s) {
    const Entered entered(vendor_);
    auto of = events_.use("wait_event", event);
    return vendor_.wait_event(recorded("wait_event", of), timeout_s);
}

double VendorStreams::elapsed(Event from, Event to) {
    const Entered entered(vendor_);
    auto first = events_.use("elapsed", from);
    auto last = events_.use("elapsed", to);
    if (!vendor_.event_done(recorded("elapsed", first)) || !vendor_.event_done(recorded("elapsed", last))) {
        throw errno_error("elapsed", EAGAIN, "the event is not done", "wait for it first");
    }
    return vendor_.elapsed((*first)->raw, (*last)->raw);
}

Raw VendorStreams::recorded(const char* call, EventTable::Use& of) {
    if (!(*of)->recorded) {
        throw errno_error(call, EINVAL, "the event was never recorded", "record it on a stream first");
    }
    return (*of)->raw;
}

}  // namespace vnpu
