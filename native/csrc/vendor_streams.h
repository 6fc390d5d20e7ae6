// Streams over a vendor's.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "host_streams.h"
#include "table.h"
#include "vendor.h"

namespace vnpu {

class VendorStreams final : public Streams {
   public:
    // `vendor` outlives this.
    VendorStreams(Vendor& vendor, CopyCheck check) : vendor_(vendor), check_(std::move(check)) {}
    ~VendorStreams() override;

    Stream create_stream() override;
    void destroy_stream(Stream stream) override;
    void copy(Stream stream, std::span<const CopyEntry> entries, CopyKind kind) override;
    void zero(Stream stream, std::span<const CopyEntry> ranges) override;
    bool wait_stream(Stream stream, double timeout_s) override;
    Event create_event() override;
    void destroy_event(Event event) override;
    void record(Event event, Stream stream) override;
    void stream_wait(Stream stream, Event event) override;
    bool event_done(Event event) override;
    bool wait_event(Event event, double timeout_s) override;
    double elapsed(Event from, Event to) override;

   private:
    struct EventState {
        explicit EventState(Raw of) : raw(of) {}
        const Raw raw;
        std::atomic<bool> recorded{false};
    };
    using EventTable = Table<std::shared_ptr<EventState>>;

    // Throws DriverError where it never was.
    static Raw recorded(const char* call, EventTable::Use& of);

    Vendor& vendor_;
    const CopyCheck check_;
    Table<Raw> streams_{"stream"};
    EventTable events_{"event"};
};

}  // namespace vnpu
